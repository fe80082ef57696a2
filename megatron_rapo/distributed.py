"""Joining the other processes, and leaving in an orderly way when one of them is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

_WORLD_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def world_size_from_environment() -> int:
    """Processes that the launcher (torchrun, srun) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def init_process_group(timeout_s: float) -> None:
    """Join torch.distributed: gloo on CPU, NCCL beside it on GPUs. Without a launcher this is a world of one.

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


def explain_sigterm() -> None:
    """On SIGTERM, which launchers send to the rest when one process has died, say so and end at once.

    A process that waits in a collective runs no Python signal handler, so a thread is woken by the signal instead.
    """
    wake_end, signal_end = os.pipe()
    os.set_blocking(signal_end, False)
    signal.signal(signal.SIGTERM, lambda _signum, _frame: None)  # the default would end the process without a word
    signal.set_wakeup_fd(signal_end)

    def watch() -> None:
        while signal.SIGTERM not in os.read(wake_end, 64):
            pass
        message = "told to end (SIGTERM): most likely another process of this run has failed; see its own message."
        print(f"rank {os.environ.get('RANK', '0')}: {message}", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)  # an orderly exit could wait for the lost process

    threading.Thread(target=watch, name="sigterm", daemon=True).start()
