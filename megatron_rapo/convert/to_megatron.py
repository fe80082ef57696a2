"""Convert a Hugging Face folder to a Megatron checkpoint: one file for each rank of a layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_rapo.checkpoints.tensors import Chunk, saved_none, write_file
from megatron_rapo.convert.files import Progress, make_folder, state_of
from megatron_rapo.convert.megatron_folder import finish_folder, in_files
from megatron_rapo.convert.model_tensors import (
    Layout,
    ModelTensor,
    check_layout,
    extra_states,
    model_tensors,
    stage_of,
)
from megatron_rapo.convert.source import HfSource
from megatron_rapo.models import WeightReader


def hf_to_megatron(
    source: Path, target: Path, layout: Layout, *, dtype: torch.dtype, processes: int, progress: Progress
) -> None:
    """Write the checkpoint `target`, of which every rank of `layout` has its own files; any other layout can load it.

    Raises ConfigError where `source` is no model that is supported or its weights are not those of its config.json,
    ConversionError where the layout does not fit it.
    """
    model = HfSource(source).model
    check_layout(model, layout)
    ranks = _by_rank(model_tensors(model, tensor=layout.tensor), layout)
    files = [
        RankFile(source, name, parts, dtype) for name, parts in in_files(ranks, lambda part: _chunk(part, dtype).nbytes)
    ]

    def finish(folder: Path, done: Mapping[str, list[dict[str, Any]]]) -> None:
        objects = dict.fromkeys(extra_states(model), saved_none())
        common = {"checkpoint_version": 3.0, "iteration": 0}
        finish_folder(folder, done, objects=objects, common=common, layout=layout, like=source)

    recipe = {"source": state_of(source), "layout": dataclasses.asdict(layout), "dtype": str(dtype)}
    make_folder(target, files, finish, recipe=recipe, processes=processes, progress=progress)


Part = tuple[ModelTensor, int, int]  # first and last row (of a row-parallel weight: column)


@dataclass(frozen=True)
class RankFile:
    """Some of what one rank holds."""

    source: Path
    name: str
    parts: tuple[Part, ...]
    dtype: torch.dtype

    @cached_property
    def nbytes(self) -> int:
        return sum(_chunk(part, self.dtype).nbytes for part in self.parts)

    def make(self, path: Path, progress: Progress) -> list[dict[str, Any]]:
        return [written.as_json() for written in write_file(path, self._chunks(progress))]

    def _chunks(self, progress: Progress) -> Iterator[tuple[Chunk, Tensor]]:
        reader = WeightReader(self.source)
        for part in self.parts:
            tensor, start, stop = part
            chunk = _chunk(part, self.dtype)
            yield chunk, tensor.fill(self.dtype, start, stop, reader.read)
            progress(chunk.nbytes)


def _chunk(part: Part, dtype: torch.dtype) -> Chunk:
    tensor, start, stop = part
    return tensor.chunk(dtype, start, stop)


def _by_rank(tensors: Sequence[ModelTensor], layout: Layout) -> list[list[Part]]:
    """List the parts that each rank holds. Ranks are numbered like in Megatron: tensor ranks vary first."""
    ranks: list[list[Part]] = [[] for _ in range(layout.tensor * layout.pipeline)]
    for tensor in tensors:
        stage = stage_of(tensor, layout)
        for rank in range(layout.tensor):
            held = [(tensor, start, stop) for start, stop in tensor.ranges(layout.tensor, rank)]
            ranks[stage * layout.tensor + rank] += held
    return ranks
