"""Save the distributed optimizer's state from the right place where a gradient buffer has several buckets."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


@functools.cache
def install() -> None:
    """Mend megatron-core 0.16.1's `fully_reshardable` checkpoints for this process, once.

    Each bucket ends with padding to a multiple of lcm(data-parallel size, 128). On saving, Megatron joins the buckets
    without that padding (`get_parameter_state_dp_zero`), but reads each parameter where it is with the padding
    (`param_index_map`). So all parameters after the first bucket are saved shifted, and the last numbers are lost. A
    tied embedding has a bucket of its own where pipeline > 1; only sizes that need no padding escape.
    Megatron-LM 5077 subtracts the padding. A megatron-core with it (after 0.19.0) lets this file go, and must: with
    both, the padding would be subtracted twice. (mcore/state_digests.py would refuse what that makes.)
    """
    unmended = DistributedOptimizer.sharded_param_state_fully_reshardable

    def sharded_param_state(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _positions_without_padding(self.buffers):
            return unmended(self, *args, **kwargs)

    DistributedOptimizer.sharded_param_state_fully_reshardable = sharded_param_state


@contextmanager
def _positions_without_padding(buffers: list[Any]) -> Iterator[None]:
    """Have `param_index_map` of the buffers count as if their buckets had no padding at their ends."""
    kept = [buffer.param_index_map for buffer in buffers]
    try:
        for buffer in buffers:
            buffer.param_index_map = _without_padding(buffer)
        yield
    finally:
        for buffer, positions in zip(buffers, kept, strict=True):
            buffer.param_index_map = positions


def _without_padding(buffer: Any) -> dict[Any, tuple[int, int, int]]:
    """Start, end and bucket of each parameter; parameters keep their order, which Megatron goes by on loading."""
    padding, so_far = [], 0
    for bucket in buffer.buckets:
        padding.append(so_far)
        so_far += bucket.grad_data.numel() - bucket.numel_unpadded
    return {
        parameter: (start - padding[bucket], end - padding[bucket], bucket)
        for parameter, (start, end, bucket) in buffer.param_index_map.items()
    }
