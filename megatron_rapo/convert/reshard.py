"""Reshard a Megatron checkpoint to another layout, with its optimizer state."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from megatron_rapo.checkpoints.folders import SETTINGS
from megatron_rapo.checkpoints.tensors import Chunk, Reader
from megatron_rapo.convert.files import Progress, state_of
from megatron_rapo.convert.megatron_folder import Rest, make_checkpoint
from megatron_rapo.convert.model_tensors import Layout, ModelTensor, check_layout, model_tensors, stage_of
from megatron_rapo.convert.source import MegatronSource

_OPTIMIZER = re.compile(r"^optimizer\.state\.[^.]+\.")
"""Megatron's prefix of a parameter's optimizer state, which is split like the parameter."""


def reshard_megatron(
    source: Path, target: Path, layout: Layout, *, like: Path | None, processes: int, progress: Progress
) -> None:
    """Write the checkpoint `target` with everything that `source` has. Every rank of `layout` has its own files.

    A run can resume from it under any layout, like from `source`. Raises CheckpointError or ConversionError.
    """
    opened = MegatronSource(source, like)
    check_layout(opened.model, layout)
    reader = opened.reader
    rest = Rest(
        objects={key: reader.read_object(key) for key in reader.objects},
        common=reader.common,
        layout=layout,
        like=opened.like,
        others=[path for path in [source / SETTINGS] if path.exists()],
    )
    make_checkpoint(
        target,
        _by_rank(opened, layout),
        partial(_read, source),
        rest,
        recipe={"source": state_of(source)},
        processes=processes,
        progress=progress,
    )


def tensor_bytes(reader: Reader) -> int:
    """Return the size of all tensors in a checkpoint, in bytes."""
    return sum(tensor.size.numel() * tensor.properties.dtype.itemsize for tensor in reader.tensors.values())


def _read(source: Path, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Tensor]]:
    reader = Reader(source)
    for chunk in chunks:
        yield chunk, reader.read(chunk.key, chunk.offsets, chunk.sizes)


def _by_rank(source: MegatronSource, layout: Layout) -> list[list[Chunk]]:
    """List each rank's chunks: its part of parameters and their optimizer state. The first rank holds the rest."""
    ranks: list[list[Chunk]] = [[] for _ in range(layout.tensor * layout.pipeline)]
    parameters: dict[str, list[ModelTensor]] = {}
    for parameter in model_tensors(source.model):
        parameters.setdefault(parameter.key, []).append(parameter)
    for key, tensor in source.reader.tensors.items():
        shape, dtype = tuple(tensor.size), tensor.properties.dtype
        of_model = parameters.get(_OPTIMIZER.sub("", key))
        if of_model is None:
            ranks[0] += [Chunk(key, shape, dtype, tuple(c.offsets), tuple(c.sizes)) for c in tensor.chunks]
            continue
        for parameter in of_model:
            first = stage_of(parameter, layout) * layout.tensor
            for rank in range(layout.tensor):
                ranks[first + rank] += _cut(Chunk(key, shape, dtype, (), ()), parameter, layout.tensor, rank)
    return ranks


def _cut(whole: Chunk, parameter: ModelTensor, tensor: int, rank: int) -> Iterator[Chunk]:
    """Yield a rank's chunks of a tensor that is split like `parameter`. Its vocabulary may have other padding."""
    layers = 0 if parameter.layer is None else 1
    axis = layers + parameter.shard.axis
    for start, stop in parameter.ranges(tensor, rank, whole=whole.shape[axis]):
        offsets, sizes = [0] * len(whole.shape), list(whole.shape)
        if parameter.layer is not None:
            offsets[0], sizes[0] = parameter.layer, 1
        offsets[axis], sizes[axis] = start, stop - start
        yield dataclasses.replace(whole, offsets=tuple(offsets), sizes=tuple(sizes))
