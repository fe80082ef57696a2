"""Convert a Hugging Face folder to a Megatron checkpoint with separate files for each rank of a layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_rapo.checkpoints.tensors import Chunk, saved_none
from megatron_rapo.convert.files import Progress, state_of
from megatron_rapo.convert.megatron_folder import Rest, make_checkpoint
from megatron_rapo.convert.model_tensors import Layout, ModelTensor, check_layout, extra_states, model_tensors, stage_of
from megatron_rapo.convert.source import HfSource
from megatron_rapo.models import WeightReader


def hf_to_megatron(
    source: Path, target: Path, layout: Layout, *, dtype: torch.dtype, processes: int, progress: Progress
) -> None:
    """Write the checkpoint `target`. Every rank of `layout` has its own files, but any other layout can load it too.

    Raises ConfigError if the model is not supported or its weights contradict its config.json, ConversionError if the
    layout does not fit the model.
    """
    model = HfSource(source).model
    check_layout(model, layout)
    rest = Rest(
        objects=dict.fromkeys(extra_states(model), saved_none()),
        common={"checkpoint_version": 3.0, "iteration": 0},
        layout=layout,
        like=source,
    )
    ranks = _by_rank(model_tensors(model, tensor=layout.tensor), layout, dtype)
    recipe = {"source": state_of(source), "dtype": str(dtype)}
    make_checkpoint(target, ranks, partial(_read, source), rest, recipe=recipe, processes=processes, progress=progress)


@dataclass(frozen=True)
class Rows:
    """Rows (columns of a row-parallel weight) `start` to `stop` of a parameter."""

    parameter: ModelTensor
    dtype: torch.dtype
    start: int
    stop: int

    @property
    def chunk(self) -> Chunk:
        """Return the part of the global tensor that they are."""
        return self.parameter.chunk(self.dtype, self.start, self.stop)

    @property
    def nbytes(self) -> int:
        return self.chunk.nbytes


def _read(source: Path, parts: Iterable[Rows]) -> Iterator[tuple[Chunk, Tensor]]:
    reader = WeightReader(source)
    for part in parts:
        yield part.chunk, part.parameter.fill(part.dtype, part.start, part.stop, reader.read)


def _by_rank(parameters: Sequence[ModelTensor], layout: Layout, dtype: torch.dtype) -> list[list[Rows]]:
    """List the parts that each rank holds. Ranks are numbered like in Megatron: tensor ranks vary first."""
    ranks: list[list[Rows]] = [[] for _ in range(layout.tensor * layout.pipeline)]
    for parameter in parameters:
        first = stage_of(parameter, layout) * layout.tensor
        for rank in range(layout.tensor):
            ranks[first + rank] += [Rows(parameter, dtype, *ends) for ends in parameter.ranges(layout.tensor, rank)]
    return ranks
