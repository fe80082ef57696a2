"""Make a Megatron checkpoint from the chunks that each rank of a layout holds."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from megatron_rapo.checkpoints.folders import MODEL_FILES
from megatron_rapo.checkpoints.manifest import digests, whole, write_manifest
from megatron_rapo.checkpoints.tensors import (
    BACKEND,
    COMMON,
    METADATA,
    OBJECTS,
    Chunk,
    Written,
    chunk_places,
    write_file,
    write_metadata,
)
from megatron_rapo.convert.files import Progress, make_folder
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.models.hf_weights import copy_model_files

MAX_FILE_BYTES = 5 * 10**9  # small enough to write again quickly after an interruption


class Part(Protocol):
    """Part of a tensor that one rank holds. Can be pickled."""

    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=Part)
Read = Callable[[Iterable[P]], Iterator[tuple[Chunk, Tensor]]]
"""Reads the parts from the source, one at a time. Can be pickled."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Content of a checkpoint besides tensors."""

    objects: Mapping[str, bytes]  # saved objects by key
    common: Mapping[str, Any]  # state that all processes share
    layout: Layout
    like: Path  # folder with the model's config.json and tokenizer
    others: Sequence[Path] = ()  # files to copy


def make_checkpoint(
    folder: Path,
    ranks: Iterable[Sequence[P]],
    read: Read[P],
    rest: Rest,
    *,
    recipe: Mapping[str, Any],
    processes: int,
    progress: Progress,
) -> None:
    """Write the checkpoint `folder`. Each rank's parts go to files of their own. Raises ConversionError."""
    files = [
        ChunksFile(f"__{rank}_{number}.distcp", parts, read)
        for rank, held in enumerate(ranks)
        for number, parts in enumerate(_in_files(held))
    ]
    recipe = {**recipe, "layout": dataclasses.asdict(rest.layout)}

    def finish(partial: Path, done: Mapping[str, list[dict[str, Any]]]) -> None:
        _finish(partial, {name: [Written.from_json(each) for each in of_file] for name, of_file in done.items()}, rest)

    make_folder(folder, files, finish, recipe=recipe, processes=processes, progress=progress)


@dataclass(frozen=True)
class ChunksFile(Generic[P]):
    """One `.distcp` file: some of the parts that one rank holds."""

    name: str
    parts: Sequence[P]
    read: Read[P]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def make(self, path: Path, progress: Progress) -> list[dict[str, Any]]:
        def watched() -> Iterator[tuple[Chunk, Tensor]]:
            for chunk, tensor in self.read(self.parts):
                yield chunk, tensor
                progress(chunk.nbytes)

        return [written.as_json() for written in write_file(path, watched())]


def _in_files(parts: Iterable[P]) -> list[list[P]]:
    """Split a rank's parts into files of at most MAX_FILE_BYTES, or one part if that is larger."""
    files: list[list[P]] = [[]]
    size = 0
    for part in parts:
        if files[-1] and size + part.nbytes > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(part)
        size += part.nbytes
    return files


def _finish(folder: Path, written: Mapping[str, Sequence[Written]], rest: Rest) -> None:
    """Add metadata, objects, the model's own files and the manifest to the `written` files."""
    common = {**rest.common, "layout": dataclasses.asdict(rest.layout)}
    write_metadata(folder, [each for of_file in written.values() for each in of_file], rest.objects, common)
    copy_model_files(rest.like, folder / MODEL_FILES)
    for path in rest.others:
        shutil.copy2(path, folder / path.name)
    ranges = {name: [each.range for each in of_file] for name, of_file in written.items()}
    ranges[OBJECTS] = digests(folder / OBJECTS, chunk_places(folder).get(OBJECTS, []))
    names = [METADATA, COMMON, BACKEND, *(path.name for path in rest.others)]
    names += [f"{MODEL_FILES}/{path.name}" for path in (folder / MODEL_FILES).iterdir()]
    write_manifest(folder, ranges | {name: whole(folder / name) for name in names})
