"""What every Megatron checkpoint that is made here has in common: its files, and how it is finished."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from megatron_rapo.checkpoints import MODEL_FILES
from megatron_rapo.checkpoints.manifest import digests, whole, write_manifest
from megatron_rapo.checkpoints.tensors import (
    BACKEND,
    COMMON,
    METADATA,
    OBJECTS,
    Written,
    chunk_places,
    write_metadata,
)
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.models.hf_weights import copy_model_files

MAX_FILE_BYTES = 5 * 10**9
Item = TypeVar("Item")


def in_files(ranks: Sequence[Sequence[Item]], nbytes: Callable[[Item], int]) -> Iterator[tuple[str, tuple[Item, ...]]]:
    """Name and content of each file: what a rank holds, in files of a size that a copy is quick to repeat."""
    for rank, items in enumerate(ranks):
        files: list[list[Item]] = [[]]
        size = 0
        for item in items:
            if files[-1] and size + nbytes(item) > MAX_FILE_BYTES:
                files.append([])
                size = 0
            files[-1].append(item)
            size += nbytes(item)
        yield from ((f"__{rank}_{number}.distcp", tuple(of_file)) for number, of_file in enumerate(files))


def finish_folder(
    folder: Path,
    done: Mapping[str, list[dict[str, Any]]],
    *,
    objects: Mapping[str, bytes],
    common: Mapping[str, Any],
    layout: Layout,
    like: Path,
    others: Sequence[Path] = (),
) -> None:
    """Make a checkpoint of the files that were written (`done`, by name), the model's own in `like`, and `others`."""
    written = {name: [Written.from_json(each) for each in of_file] for name, of_file in done.items()}
    everything = [each for of_file in written.values() for each in of_file]
    write_metadata(folder, everything, objects, {**common, "layout": dataclasses.asdict(layout)})
    copy_model_files(like, folder / MODEL_FILES)
    for path in others:
        shutil.copy2(path, folder / path.name)
    ranges = {name: [each.range for each in of_file] for name, of_file in written.items()}
    ranges[OBJECTS] = digests(folder / OBJECTS, chunk_places(folder).get(OBJECTS, []))
    names = [METADATA, COMMON, BACKEND, *(path.name for path in others)]
    names += [f"{MODEL_FILES}/{path.name}" for path in (folder / MODEL_FILES).iterdir()]
    write_manifest(folder, ranges | {name: whole(folder / name) for name in names})
