"""Describe a model's parameters as global tensors of a Megatron checkpoint, from the parameter map.

A global tensor is the tensor that a single tensor-parallel rank would hold. Layers are the first axis of a tensor that
they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_rapo.checkpoints.tensors import Chunk
from megatron_rapo.convert.files import ConversionError
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import (
    EMBEDDING,
    OUTPUT,
    TRANSFORMER_ENGINE_NORMS,
    Entry,
    Shard,
    Stacked,
    Vocabulary,
    entries,
    fill,
    narrowed,
    padded_vocab_size,
    stages_of_layers,
    unsplittable,
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a checkpoint is split into files: like Megatron's ranks hold the model. Any layout can load it."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1


@dataclass(frozen=True)
class ModelTensor:
    """One parameter of the model in a checkpoint."""

    key: str
    layer: int | None
    num_layers: int
    shard: Shard  # the whole parameter
    halves: int  # parts that are each split over tensor ranks: 2 for gate and up

    @property
    def key_of_layer(self) -> str:
        """Return the key of this layer's tensor in a checkpoint whose layers do not share one."""
        return self.key.replace("layers.", f"layers.{self.layer}.", 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the global tensor."""
        return self.shard.shape if self.layer is None else (self.num_layers, *self.shard.shape)

    def chunk(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Chunk:
        """Return this parameter's part of the global tensor, or its rows (columns if row-parallel) start to stop."""
        axis = self.shard.axis
        size = (self.shard.shape[axis] if stop is None else stop) - start
        offsets = tuple(start if i == axis else 0 for i in range(len(self.shard.shape)))
        sizes = tuple(size if i == axis else n for i, n in enumerate(self.shard.shape))
        if self.layer is not None:
            offsets, sizes = (self.layer, *offsets), (1, *sizes)
        return Chunk(self.key, self.shape, dtype, offsets, sizes)

    def fill(self, dtype: torch.dtype, start: int, stop: int, read: Callable[[str, int, int, int], Tensor]) -> Tensor:
        """Return the content of `chunk(dtype, start, stop)`, built from slices of Hugging Face tensors."""
        part = narrowed(self.shard, start, stop)
        local = self._one_piece(part, read)
        if local is None:
            local = torch.empty(part.shape, dtype=dtype)
            fill(local, part, read)
        return local.to(dtype) if self.layer is None else local.to(dtype)[None]

    @staticmethod
    def _one_piece(part: Shard, read: Callable[[str, int, int, int], Tensor]) -> Tensor | None:
        """Return a part that is one slice of one tensor without a copy, else None."""
        if len(part.pieces) != 1:
            return None
        [piece] = part.pieces
        found = read(piece.hf_name, part.axis, piece.hf_start, piece.hf_start + piece.size)
        return found if tuple(found.shape) == part.shape else None

    def ranges(self, tensor: int, rank: int, *, whole: int | None = None) -> list[tuple[int, int]]:
        """Return a tensor-parallel rank's (start, stop) ranges on the split axis. Rank 0 alone holds unsplit tensors.

        `whole` is the size of the axis if it differs from this tensor's: a vocabulary with other padding.
        """
        whole = whole or self.shard.shape[self.shard.axis]
        if not self.shard.split:
            return [(0, whole)] if rank == 0 else []
        half = whole // self.halves
        size = -(-half // tensor)
        borders = [(min(rank * size, half), min((rank + 1) * size, half)) for _ in range(self.halves)]
        return [(i * half + start, i * half + stop) for i, (start, stop) in enumerate(borders) if start < stop]


def model_tensors(model: ModelShape, *, tensor: int = 1) -> list[ModelTensor]:
    """List every parameter once, from embedding to output layer, with the vocabulary padded for `tensor` ranks."""
    padded = padded_vocab_size(model.vocab_size, tensor)
    return [
        ModelTensor(
            _key(entry),
            entry.layer,
            model.num_layers,
            _padded(entry, padded),
            len(entry.holding.hf_names) if isinstance(entry.holding, Stacked) else 1,
        )
        for entry in entries(model, TRANSFORMER_ENGINE_NORMS)
        if not (model.tied and entry.trainer == OUTPUT)
    ]


def extra_states(model: ModelShape) -> list[str]:
    """Return the keys of the objects that Megatron's and Transformer Engine's modules load besides tensors."""
    of_layers = [
        f"decoder.layers.{module}._extra_state/shard_{layer}_{model.num_layers}"
        for module in model.family.extra_states
        for layer in range(model.num_layers)
    ]
    return [*of_layers, "decoder.final_layernorm._extra_state/shard_0_1", "output_layer._extra_state/shard_0_1"]


def check_layout(model: ModelShape, layout: Layout) -> None:
    """Refuse a layout that cannot hold this model. Raises ConversionError."""
    problem = unsplittable(model, layout.tensor)
    if problem:
        raise ConversionError(f"--tensor {layout.tensor}: {problem}; choose a size that does.")
    if layout.pipeline * layout.virtual_pipeline > model.num_layers:
        raise ConversionError(
            f"--pipeline {layout.pipeline} --virtual-pipeline {layout.virtual_pipeline}: more chunks than the model's "
            f"{model.num_layers} layers; choose sizes whose product is at most that."
        )
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        raise ConversionError(
            f"--virtual-pipeline {layout.virtual_pipeline}: does nothing with --pipeline 1; leave it out."
        )


def stage_of(parameter: ModelTensor, layout: Layout) -> int:
    """Return the pipeline rank that holds `parameter`."""
    if parameter.layer is None:
        return 0 if parameter.key == EMBEDDING else layout.pipeline - 1
    stages = stages_of_layers(parameter.num_layers, pipeline=layout.pipeline, virtual_pipeline=layout.virtual_pipeline)
    return stages[parameter.layer]


def _key(entry: Entry) -> str:
    return entry.trainer if entry.layer is None else entry.trainer.replace(f"layers.{entry.layer}.", "layers.", 1)


def _padded(entry: Entry, rows: int) -> Shard:
    shard = entry.holding.trainer(1, 0)
    return replace(shard, shape=(rows, *shard.shape[1:])) if isinstance(entry.holding, Vocabulary) else shard
