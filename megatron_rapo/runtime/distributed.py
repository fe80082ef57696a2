"""Join the other processes, run actions on all of them, and detect that one is lost."""

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

_WORLD_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def init_process_group(timeout_s: float) -> None:
    """Join torch.distributed: gloo on CPU, and also NCCL on GPUs. Without a launcher the world has one process.

    A collective that waits longer than `timeout_s` for another process raises in every process that waits.
    """
    if "RANK" not in os.environ:
        os.environ.update(_WORLD_OF_ONE)
        store = dist.HashStore()
        dist.init_process_group(_backend(), store=store, rank=0, world_size=1, timeout=timedelta(seconds=timeout_s))
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(_backend(), timeout=timedelta(seconds=timeout_s))


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def is_lost_process(error: BaseException) -> bool:
    """Return whether a collective failed because another process is gone or late, by gloo's or NCCL's message."""
    text = str(error)
    causes = ("closed by peer", "reset by peer", "Broken pipe", "timed out", "Timed out", "timeout")
    return ("gloo/" in text or "NCCL" in text) and any(cause in text for cause in causes)


def everywhere(action: Callable[[], Result]) -> Result:
    """Run `action` on every process. If it raises OSError or InputError on one, raise it on all. Collective."""
    result, problem = None, None
    try:
        result = action()
    except (OSError, InputError) as error:
        problem = error
    problems: list[OSError | InputError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found
    return cast(Result, result)


def on_first_rank(action: Callable[[], None]) -> None:
    """Run `action` on the first process. The others wait, and get its errors as in `everywhere`. Collective."""
    everywhere(action if dist.get_rank() == 0 else lambda: None)


def of_first_rank(value: Value) -> Value:
    """Return the first process's value on all processes. Collective."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
