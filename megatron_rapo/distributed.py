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


def end_promptly_on_signals() -> None:
    """On SIGTERM (launchers send it to the rest when one process has died) and Ctrl-C, say so and end at once.

    A process that waits in a collective runs no Python signal handler, so a thread is woken by the signal instead.
    Nothing is lost by it: what a run writes is flushed step by step, and checkpoints appear whole or not at all.
    """
    wake_end, signal_end = os.pipe()
    os.set_blocking(signal_end, False)
    for number in _SAID:
        signal.signal(number, lambda _number, _frame: None)  # the thread acts; the default would be silent or too late
    signal.set_wakeup_fd(signal_end)

    def watch() -> None:
        while not (received := _SAID.keys() & set(os.read(wake_end, 64))):
            pass
        number, rank = min(received), os.environ.get("RANK", "0")
        if number == signal.SIGTERM or rank == "0":
            print(f"rank {rank}: {_SAID[number]}", file=sys.stderr, flush=True)
        os._exit(128 + number)  # an orderly exit could wait for a lost process

    threading.Thread(target=watch, name="signals", daemon=True).start()


_SAID = {
    signal.SIGINT: "interrupted; --resume goes on from the latest checkpoint, if one was saved.",
    signal.SIGTERM: "told to end (SIGTERM): most likely another process of this run has failed; see its own message.",
}


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone or late: gloo and NCCL name themselves in that."""
    text = str(error)
    causes = ("closed by peer", "reset by peer", "Broken pipe", "timed out", "Timed out", "timeout")
    return ("gloo/" in text or "NCCL" in text) and any(cause in text for cause in causes)
