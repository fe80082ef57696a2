"""Compare two checkpoints, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rapo.convert.files import ConversionError, Progress
from megatron_rapo.convert.source import ModelSource
from megatron_rapo.models.parameter_map import hf_shapes

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Difference:
    """How far a tensor of one checkpoint is from that of the other."""

    name: str
    largest: float  # |a - b|; infinite where one of them is not a number
    count: int  # of numbers that are not the same to the bit
    numel: int


def compare(a: ModelSource, b: ModelSource, progress: Progress) -> Iterator[Difference]:
    """Compare every Hugging Face tensor, with one pair in memory at a time.

    Raises ConversionError if the models differ in shape.
    """
    shapes, others = hf_shapes(a.model), hf_shapes(b.model)
    if shapes != others:
        name = next(name for name in [*shapes, *others] if shapes.get(name) != others.get(name))
        raise ConversionError(
            f"{name}: {_said(shapes.get(name))} in one and {_said(others.get(name))} in the other; they are "
            "checkpoints of different models."
        )
    for (name, ours), (same_name, theirs) in zip(a.tensors(shapes), b.tensors(shapes), strict=True):
        assert name == same_name, f"{name} beside {same_name}"
        yield difference(name, ours, theirs)
        progress(ours.nbytes)


def difference(name: str, a: Tensor, b: Tensor) -> Difference:
    """Compare two tensors of the same shape: by bits if their dtypes are equal, else by value."""
    if a.dtype == b.dtype:
        count = int((a.view(_BITS[a.element_size()]) != b.view(_BITS[b.element_size()])).sum())
        if not count:
            return Difference(name, 0.0, 0, a.numel())
    else:
        count = int((a.double() != b.double()).sum())
    apart = (a.double() - b.double()).abs()
    apart[a.double() == b.double()] = 0.0  # infinities
    return Difference(name, float(apart.nan_to_num(nan=torch.inf).max()), count, a.numel())


def _said(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"
