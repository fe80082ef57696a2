"""Simulate the FP8 weights of an engine with rollout.fp8, to measure their effect on log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
_LEAST_SCALE = 1 / (512 * _LARGEST)


@contextmanager
def linears_in_fp8(parameters: Mapping[str, torch.nn.Parameter], group: dist.ProcessGroup) -> Iterator[None]:
    """Replace the linears' weights, within this context, by what an engine with rollout.fp8 makes of them.

    `parameters` are this rank's, by the map's names; `group` has its tensor-parallel ranks. The original weights are
    kept in host memory and restored bit by bit. Collective over `group`.

    A row that tensor parallelism splits has one scale, as in vLLM 0.32. vLLM 0.26 (requirements-gpu.txt) gives each
    rank's part of the row its own scale, so for such an engine over several ranks this is an approximation.
    """
    linears = [p for name, p in parameters.items() if name.startswith("decoder.layers.") and p.dim() == 2]
    kept = [torch.empty_like(p, device="cpu").copy_(p.detach()) for p in linears]
    with torch.no_grad():
        for parameter in linears:
            largest = parameter.abs().amax(dim=1, keepdim=True)
            if getattr(parameter, "partition_dim", -1) == 1:  # a part of each row
                dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            parameter.copy_(rounded_rows(parameter, largest))
        try:
            yield
        finally:
            for parameter, weight in zip(linears, kept, strict=True):
                parameter.copy_(weight)


def rounded_rows(weight: Tensor, largest: Tensor) -> Tensor:
    """Round `weight` [R, C] as vLLM's fp8_per_channel does: float8_e4m3 times one scale per row. Keeps its dtype.

    `largest` [R, 1] holds the largest magnitude of each whole row.
    """
    scale = (largest.float() / _LARGEST).clamp(min=_LEAST_SCALE)
    return ((weight.float() / scale).clamp(-_LARGEST, _LARGEST).to(FP8).float() * scale).to(weight.dtype)
