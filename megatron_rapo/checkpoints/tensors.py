"""Write and read Megatron's distributed checkpoints (torch_dist) piece by piece, in one process.

Such a checkpoint is a folder in the format of torch.distributed.checkpoint, plus two files of Megatron's. `.metadata`
lists the chunks of each global tensor: in which `.distcp` file, at which byte. A chunk is a tensor that torch.save
wrote. Layers are the first axis of a tensor that they share.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_rapo.checkpoints.archive import load_tensor, map_range, rest, save_tensor
from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.checkpoints.manifest import MANIFEST, Manifest, Range
from megatron_rapo.checkpoints.restricted_pickle import (
    BACKEND,
    COMMON,
    METADATA,
    check_backend,
    read_common,
    read_metadata,
)
from megatron_rapo.runtime.atomic_write import NewFile

OBJECTS = "objects.distcp"


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a global tensor."""

    key: str
    shape: tuple[int, ...]  # of the whole tensor
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """A chunk and its place in a file."""

    chunk: Chunk
    file: str
    range: Range

    def as_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`."""
        chunk = dataclasses.asdict(self.chunk) | {"dtype": str(self.chunk.dtype).removeprefix("torch.")}
        return {"chunk": chunk, "file": self.file, "range": self.range}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Written:
        """Restore the result of `as_json`. Raises KeyError, TypeError or AttributeError for other values."""
        chunk = value["chunk"]
        axes = {name: tuple(chunk[name]) for name in ("shape", "offsets", "sizes")}
        dtype = getattr(torch, chunk["dtype"])
        return cls(Chunk(key=chunk["key"], dtype=dtype, **axes), value["file"], Range(*value["range"]))


def write_file(path: Path, chunks: Iterable[tuple[Chunk, Tensor]]) -> list[Written]:
    """Write chunks one after another, in the given order. Raises OSError."""
    with NewFile(path) as file:
        written = [Written(chunk, path.name, save_tensor(tensor, file)) for chunk, tensor in chunks]
        file.finish()
    return written


def write_metadata(
    folder: Path, written: Iterable[Written], objects: Mapping[str, bytes], common: Mapping[str, Any]
) -> None:
    """Complete a checkpoint in `folder`: describe the `written` files, and add objects that are not tensors."""
    tensors: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for each in written:
        chunk = each.chunk
        if chunk.key not in tensors:
            properties = TensorProperties(dtype=chunk.dtype)
            tensors[chunk.key] = TensorStorageMetadata(properties, torch.Size(chunk.shape), [])
        place = ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        tensors[chunk.key].chunks.append(place)
        index = MetadataIndex(chunk.key, place.offsets, len(tensors[chunk.key].chunks) - 1)
        places[index] = _StorageInfo(each.file, each.range.start, each.range.length)
    places |= _write_objects(folder, objects)
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = dict(tensors)
    described |= {key: BytesStorageMetadata() for key in objects}
    metadata = Metadata(state_dict_metadata=described, planner_data={}, storage_data=places)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    torch.save(dict(common), folder / COMMON)
    (folder / BACKEND).write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


def _write_objects(folder: Path, objects: Mapping[str, bytes]) -> dict[MetadataIndex, _StorageInfo]:
    """Write the objects into one file. Write equal ones once."""
    starts: dict[bytes, int] = {}
    with open(folder / OBJECTS, "wb") as stream:
        for content in objects.values():
            if content not in starts:
                starts[content] = stream.tell()
                stream.write(content)
    return {
        MetadataIndex(key): _StorageInfo(OBJECTS, starts[content], len(content)) for key, content in objects.items()
    }


def saved_none() -> bytes:
    """Return the bytes of an object None as Megatron saves it: in a list, by torch.save."""
    stream = BytesIO()
    torch.save([None], stream)
    return stream.getvalue()


def chunk_places(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """Return (start, length) in bytes of every chunk and object, in order, by file of a checkpoint."""
    places: dict[str, set[tuple[int, int]]] = {}
    for info in read_metadata(folder / METADATA).storage_data.values():
        places.setdefault(info.relative_path, set()).add((info.offset, info.length))
    return {file: sorted(of_file) for file, of_file in places.items()}


class Reader:
    """Reads rectangles of a checkpoint's tensors. Raises CheckpointError if `folder` is no complete checkpoint."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in (METADATA, COMMON, BACKEND) if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: has no {', no '.join(missing)}, so it is no complete Megatron checkpoint (torch_dist); "
                "name the folder that has them (for a run: RUN/checkpoints/step-...)."
            )
        self._folder = folder
        self._manifest = Manifest(folder) if (folder / MANIFEST).is_file() else None  # Megatron-LM writes none
        if self._manifest:
            self._manifest.verify([METADATA, COMMON, BACKEND])
        check_backend(folder)
        self._metadata = read_metadata(folder / METADATA)
        self._places = {(index.fqn, index.offset): info for index, info in self._metadata.storage_data.items()}
        items = self._metadata.state_dict_metadata.items()
        self.tensors = {key: value for key, value in items if isinstance(value, TensorStorageMetadata)}
        """All global tensors by key."""
        self.objects = [key for key, value in items if isinstance(value, BytesStorageMetadata)]
        """Keys of objects that are not tensors: extra state of FP8 layers, the optimizer's parameter groups."""
        self.common = read_common(folder / COMMON)

    def dtype(self, key: str) -> torch.dtype:
        """Return the dtype of a tensor. Raises CheckpointError if the tensor is missing."""
        return self._tensor(key).properties.dtype

    def read(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """Return a rectangle of the tensor `key`, in the checkpoint's dtype.

        Raises CheckpointError if the tensor or its file is missing or incomplete.
        """
        tensor = self._tensor(key)
        for chunk in tensor.chunks:
            if (*chunk.offsets, *chunk.sizes) == (*offsets, *sizes):
                return self._chunk(key, chunk)  # not copied
        found = torch.empty(tuple(sizes), dtype=tensor.properties.dtype)
        covered = 0
        for chunk, into, part in _overlaps(tensor.chunks, offsets, sizes):
            target = found[into]
            target.copy_(self._chunk(key, chunk)[part])
            covered += target.numel()
        if covered != found.numel():
            raise CheckpointError(f"{self._folder}: tensor {key} has only {covered} of {found.numel()} numbers.")
        return found

    def read_object(self, key: str) -> bytes:
        """Return the saved bytes of an object that is not a tensor. Raises CheckpointError."""
        return bytes(rest(self._content(key, self._places[key, None])))

    def _content(self, key: str, info: _StorageInfo) -> mmap:
        """Map a range of a file and verify it. Raises CheckpointError."""
        path = self._folder / info.relative_path
        try:
            content = map_range(path, info.offset, info.length)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: is missing, and holds part of {key}; take another checkpoint.") from None
        except ValueError:
            raise CheckpointError(
                f"{path}: has {path.stat().st_size:,} bytes, but bytes {info.offset:,} to "
                f"{info.offset + info.length:,} hold part of {key}; it is truncated, take another checkpoint."
            ) from None
        if self._manifest:
            self._manifest.verify_range(info.relative_path, info.offset, rest(content))
        return content

    def _tensor(self, key: str) -> TensorStorageMetadata:
        if key not in self.tensors:
            raise CheckpointError(f"{self._folder}: tensor {key} is missing; it is not a checkpoint of this model.")
        return self.tensors[key]

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        info = self._places[key, chunk.offsets]
        content = self._content(key, info)
        try:
            tensor = load_tensor(content)
        except Exception as error:  # damaged bytes can raise anything
            raise CheckpointError(
                f"{self._folder / info.relative_path}: the part of {key} at byte {info.offset} cannot be read "
                f"({error!r}); it is damaged, take another checkpoint."
            ) from None
        return tensor.view(chunk.sizes)


Slices = tuple[slice, ...]


def _overlaps(
    chunks: Sequence[ChunkStorageMetadata], offsets: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[ChunkStorageMetadata, Slices, Slices]]:
    """Yield each chunk that overlaps a rectangle, with the overlap's place in the rectangle and in the chunk."""
    for chunk in chunks:
        starts = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
        ends = [min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)]
        if all(start < end for start, end in zip(starts, ends, strict=True)):
            into = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, offsets, strict=True))
            part = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, chunk.offsets, strict=True))
            yield chunk, into, part
