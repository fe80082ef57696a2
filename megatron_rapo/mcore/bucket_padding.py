"""Fix where Megatron reads the distributed optimizer's state when a gradient buffer has several buckets."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_rapo.runtime.patching import patched


@functools.cache
def install() -> None:
    """Patch megatron-core 0.16.1's `fully_reshardable` checkpoints for this process, once.

    Each bucket ends with padding to a multiple of lcm(data-parallel size, 128). On saving, Megatron joins the buckets
    without that padding (`get_parameter_state_dp_zero`), but reads each parameter at its position with the padding
    (`param_index_map`). So it saves all parameters after the first bucket shifted, and loses the last numbers. A tied
    embedding has a bucket of its own where pipeline > 1. Only sizes that need no padding are not affected.
    Megatron-LM 5077 subtracts the padding. Delete this file once megatron-core (after 0.19.0) includes that fix: with
    both, the padding would be subtracted twice. (mcore/state_digests.py would refuse the resulting checkpoint.)
    """
    original = DistributedOptimizer.sharded_param_state_fully_reshardable

    def sharded_param_state(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for buffer in self.buffers:
                stack.enter_context(patched(buffer, param_index_map=_without_padding(buffer)))
            return original(self, *args, **kwargs)

    DistributedOptimizer.sharded_param_state_fully_reshardable = sharded_param_state


def _without_padding(buffer: Any) -> dict[Any, tuple[int, int, int]]:
    """Return start, end and bucket of each parameter, without the padding. Keep their order: loading depends on it."""
    padding, so_far = [], 0
    for bucket in buffer.buckets:
        padding.append(so_far)
        so_far += bucket.grad_data.numel() - bucket.numel_unpadded
    return {
        parameter: (start - padding[bucket], end - padding[bucket], bucket)
        for parameter, (start, end, bucket) in buffer.param_index_map.items()
    }
