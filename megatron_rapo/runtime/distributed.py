"""Connect the processes of a run, run actions on all of them, and detect a lost process."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from megatron_rapo.errors import InputError

Result = TypeVar("Result")
Value = TypeVar("Value")
_SINGLE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def init_process_group(timeout_s: float) -> None:
    """Initialise torch.distributed: with gloo on CPU, also with NCCL on GPUs. One process without a launcher.

    If a collective waits longer than `timeout_s` for another process, it raises in every process that waits.
    """
    has_gpu, timeout = torch.cuda.is_available(), timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    if "RANK" not in os.environ:
        os.environ.update(_SINGLE_PROCESS)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=timeout)


def is_lost_process(error: BaseException) -> bool:
    """Return whether a collective failed because another process is gone or late, judged by the error's text."""
    text = str(error)
    causes = ("closed by peer", "reset by peer", "Broken pipe", "timed out", "Timed out", "timeout")
    return ("gloo/" in text or "NCCL" in text) and any(cause in text for cause in causes)


def everywhere(action: Callable[[], Result]) -> Result:
    """Run `action` on every process, and return this process's result. Collective.

    If `action` raises OSError or InputError on a process, all processes raise the error of the lowest such rank.
    """
    result, own_error = None, None
    try:
        result = action()
    except (OSError, InputError) as error:
        own_error = error
    errors: list[OSError | InputError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, own_error)
    for found in errors:
        if found is not None:
            raise found
    return cast(Result, result)


def on_first_rank(action: Callable[[], None]) -> None:
    """Run `action` on rank 0 while the others wait. All raise its errors as in `everywhere`. Collective."""
    everywhere(action if dist.get_rank() == 0 else lambda: None)


def of_first_rank(value: Value) -> Value:
    """Return rank 0's `value` on all processes. Collective."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
