"""Compare two checkpoints, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_rapo.convert.files import ConversionError, Progress
from megatron_rapo.convert.source import ModelSource
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.reshard.partial_digest import INTEGERS


@dataclass(frozen=True)
class Difference:
    """Difference between a tensor of one checkpoint and the same tensor of the other."""

    name: str
    largest: float  # |a - b|; infinite if one of them is NaN
    count: int  # numbers that differ in any bit
    numel: int


def compare(a: ModelSource, b: ModelSource, progress: Progress) -> Iterator[Difference]:
    """Compare every Hugging Face tensor, with one pair in memory at a time.

    Raises ConversionError if the models differ in shape.
    """
    shapes, others = hf_shapes(a.model), hf_shapes(b.model)
    if shapes != others:
        name = next(name for name in [*shapes, *others] if shapes.get(name) != others.get(name))
        raise ConversionError(
            f"{name}: {_shape(shapes.get(name))} in one and {_shape(others.get(name))} in the other; they are "
            "checkpoints of different models."
        )
    for (name, ours), (same_name, theirs) in zip(a.tensors(shapes), b.tensors(shapes), strict=True):
        assert name == same_name, f"{name} beside {same_name}"
        yield difference(name, ours, theirs)
        progress(ours.nbytes)


def difference(name: str, a: Tensor, b: Tensor) -> Difference:
    """Compare two tensors of the same shape: by bits if their dtypes are equal, else by value."""
    if a.dtype == b.dtype:
        count = int((a.view(INTEGERS[a.element_size()]) != b.view(INTEGERS[b.element_size()])).sum())
        if not count:
            return Difference(name, 0.0, 0, a.numel())
    else:
        count = int((a.double() != b.double()).sum())
    apart = (a.double() - b.double()).abs()
    apart[a.double() == b.double()] = 0.0  # inf - inf is NaN
    return Difference(name, float(apart.nan_to_num(nan=math.inf).max()), count, a.numel())


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"
