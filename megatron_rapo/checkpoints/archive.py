"""Tensors as torch.save writes them, one after the other in a file: written with digests, read without a copy."""

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

ALIGNMENT = 64  # bytes: where numbers begin within an archive of torch.save, and an archive of ours in its file


def save_tensor(tensor: Tensor, file: NewFile) -> Range:
    """Append a tensor to `file` from the next multiple of ALIGNMENT on; of a view only what it shows.

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
            raise stream.problem from None  # torch.save hides it
        raise
    return stream.range()


def save_bytes(content: memoryview, file: NewFile) -> Range:
    """Append anything else."""
    stream = _DigestedStream(file)
    stream.write(content)
    return stream.range()


def map_range(path: Path, start: int, length: int) -> mmap.mmap:
    """Bytes of a file, to the end of a mapping that stands at their start. What is written there stays in memory.

    Raises ValueError where the file has fewer.
    """
    into_page = start % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as stream:
        mapping = mmap.mmap(stream.fileno(), into_page + length, offset=start - into_page, access=mmap.ACCESS_COPY)
    mapping.seek(into_page)
    return mapping


def rest(mapping: mmap.mmap) -> memoryview:
    """From where it stands to its end, not copied."""
    return memoryview(mapping)[mapping.tell() :]


def load_tensor(mapping: mmap.mmap) -> Tensor:
    """The tensor over the mapping's own memory, but copied where its numbers would begin at odd bytes (Megatron's).

    Raises anything, as torch.load and zipfile do, where it is not what torch.save made of one tensor.
    """
    stream = cast(IO[bytes], mapping)  # all of one that they need
    described: Tensor = torch.load(stream, map_location="meta", weights_only=True)
    if not described.numel():
        return torch.empty_like(described, device="cpu")
    [record] = [each for each in zipfile.ZipFile(stream).infolist() if each.filename.endswith("/data/0")]
    name_and_extra = struct.unpack_from("<HH", mapping, record.header_offset + 26)  # the end of its header's 30 bytes
    flat = torch.frombuffer(
        mapping,
        dtype=described.dtype,
        count=record.file_size // described.dtype.itemsize,
        offset=record.header_offset + 30 + sum(name_and_extra),
    )
    tensor = flat.as_strided(described.shape, described.stride(), described.storage_offset())
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


class _DigestedStream:
    """Writes on in a file. What passes is digested while it is in the processor's cache."""

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
        """Nothing is kept back."""

    def range(self) -> Range:
        """What was written."""
        return Range(self._start, self._file.tell() - self._start, self._state.hexdigest())


@contextmanager
def _without_crc32() -> Iterator[None]:
    """torch.save's sums of what it writes take longer than the writing, and the manifest has better ones."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
