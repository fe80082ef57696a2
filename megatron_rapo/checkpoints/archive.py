"""Write tensors with torch.save one after another into a file, with digests, and read them without a copy."""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import torch
import xxhash
from torch import Tensor

from megatron_rapo.checkpoints.manifest import Range
from megatron_rapo.runtime.atomic_write import NewFile, blocks

ALIGNMENT = 64  # bytes; torch.save aligns the numbers in its archive to this, and we align archives in a file


def save_tensor(tensor: Tensor, file: NewFile) -> Range:
    """Append a tensor to `file` at the next multiple of ALIGNMENT. Write only the part that a view shows.

    Raises OSError.
    """
    if tensor.nbytes != tensor.untyped_storage().nbytes():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    file.write(memoryview(bytes(-file.tell() % ALIGNMENT)))
    stream = _DigestedStream(file)
    try:
        with _without_crc32():
            torch.save(tensor, cast(IO[bytes], stream))
    except RuntimeError:
        if stream.problem:
            raise stream.problem from None  # torch.save hides the cause
        raise
    return stream.range()


def save_bytes(content: memoryview, file: NewFile) -> Range:
    """Append bytes that are not a tensor. Raises OSError."""
    stream = _DigestedStream(file)
    stream.write(content)
    return stream.range()


def map_range(path: Path, start: int, length: int) -> mmap.mmap:
    """Map `length` bytes of a file. The mapping's position is at the first, and its end is after the last.

    Changes of the mapping stay in memory. Raises ValueError if the file is too short.
    """
    into_page = start % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as stream:
        mapping = mmap.mmap(stream.fileno(), into_page + length, offset=start - into_page, access=mmap.ACCESS_COPY)
    mapping.seek(into_page)
    return mapping


def rest(mapping: mmap.mmap) -> memoryview:
    """Return the bytes from the mapping's position to its end, without a copy."""
    return memoryview(mapping)[mapping.tell() :]


def load_tensor(mapping: mmap.mmap) -> Tensor:
    """Return the tensor in the mapping's own memory. Copy it only if its numbers are misaligned (Megatron's files).

    Raises any exception of torch.load or zipfile if the bytes are not one tensor that torch.save wrote.
    """
    stream = cast(IO[bytes], mapping)  # it has all methods that torch.load and zipfile use
    described: Tensor = torch.load(stream, map_location="meta", weights_only=True)
    if not described.numel():
        return torch.empty_like(described, device="cpu")
    [record] = [each for each in zipfile.ZipFile(stream).infolist() if each.filename.endswith("/data/0")]
    name_and_extra = struct.unpack_from("<HH", mapping, record.header_offset + 26)  # ends a header of 30 bytes
    flat = torch.frombuffer(
        mapping,
        dtype=described.dtype,
        count=record.file_size // described.dtype.itemsize,
        offset=record.header_offset + 30 + sum(name_and_extra),
    )
    tensor = flat.as_strided(described.shape, described.stride(), described.storage_offset())
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


class _DigestedStream:
    """Appends to a file and digests each block while it is in the processor's cache."""

    def __init__(self, file: NewFile) -> None:
        self._file, self._start, self._state = file, file.tell(), xxhash.xxh3_128()
        self.problem: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        whole = memoryview(content)
        try:
            for block in blocks(whole):
                self._state.update(block)
                self._file.write(block)
        except OSError as error:
            self.problem = error
            raise
        return whole.nbytes

    def flush(self) -> None:
        """Do nothing: this stream has no buffer."""

    def range(self) -> Range:
        """Return the range of bytes that were written."""
        return Range(self._start, self._file.tell() - self._start, self._state.hexdigest())


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Switch off torch.save's checksums: they take longer than the writing, and the manifest has better ones."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
