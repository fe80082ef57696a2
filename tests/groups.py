"""The end of a layout's process groups, in a process that goes on to another layout."""

from __future__ import annotations

import gc

import torch.distributed as dist
from megatron.core import parallel_state


def end_groups() -> None:
    """End what `init_parallel` has made. Collective.

    Megatron forgets its groups but lets them live, each with three threads that wake again and again: a thousand of
    them after a dozen layouts.
    """
    dist.barrier()  # nobody is still within a collective of theirs
    for group in parallel_state._global_process_group_list or []:
        if group is not None:  # which stands for the group of all
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()
    gc.collect()  # policies, which are cycles, hold on to them
