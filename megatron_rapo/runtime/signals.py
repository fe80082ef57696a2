"""Handle requests to stop from Ctrl-C, a launcher or a scheduler."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

_INTERRUPTS = {
    signal.SIGINT: "interrupted; --resume goes on from the latest checkpoint, or from the start if there is none."
}
_STOP_REQUESTS = {
    signal.SIGTERM: "told to end (SIGTERM), by the scheduler or because another process of this run has failed",
    signal.SIGUSR1: "told to end soon (SIGUSR1)",
}

SAME_REQUEST_S = 2.0
"""Signals within this time count as one request: a scheduler signals all processes, and launchers forward signals."""


class Stopped(Exception):
    """A process of the run has been told to stop."""


class Signals:
    """Handles SIGINT, SIGTERM and SIGUSR1 of this process from its creation on.

    SIGINT (Ctrl-C) ends the process at once. This is safe: a run flushes its output at every step and writes
    checkpoints atomically. With `closing_s`, the main thread first gets KeyboardInterrupt and has this many seconds to
    write its data.

    After SIGTERM or SIGUSR1 the process continues to the next `check`. It ends at once if `grace_s` seconds pass
    before, if a second signal comes, or if `grace_s` is 0.

    A process that waits in a collective runs no Python signal handler. So a signal wakes a thread, which handles it.
    """

    def __init__(self, grace_s: float, *, closing_s: float = 0.0) -> None:
        self._grace_s, self._closing_s = grace_s, closing_s
        self._interrupted_at: float | None = None  # time.monotonic()
        self._stop = threading.Event()
        self._stop_at = 0.0  # time.monotonic() of the request
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        for number in (*_INTERRUPTS, *_STOP_REQUESTS):
            signal.signal(number, _ignore)  # the thread handles it; the default would end the process without a message
        if closing_s:
            signal.signal(signal.SIGINT, _interrupt_once)
        signal.set_wakeup_fd(write_end)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def check(self) -> None:
        """Raise Stopped on every process if one was told to stop. Collective over the world."""
        stop = torch.tensor(int(self._stop.is_set()))
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
        if stop:
            raise Stopped

    def _watch(self) -> None:
        """Handle the signals whose numbers Python writes to the pipe."""
        while True:
            for number in sorted(set(os.read(self._read_end, 64)) & {*_INTERRUPTS, *_STOP_REQUESTS}):
                self._handle(signal.Signals(number))

    def _handle(self, number: signal.Signals) -> None:
        if number in _INTERRUPTS:
            self._interrupt(number)
            return
        if self._stop.is_set() and time.monotonic() - self._stop_at < SAME_REQUEST_S:
            return
        if self._stop.is_set() or not self._grace_s:
            _end(number, f"{_STOP_REQUESTS[number]}.")
        _print(f"{_STOP_REQUESTS[number]}; stops within {self._grace_s:g} s.")
        self._stop_at = time.monotonic()
        self._stop.set()
        _end_after(self._grace_s, number, f"not done {self._grace_s:g} s after {number.name}; ends without saving.")

    def _interrupt(self, number: signal.Signals) -> None:
        text = _INTERRUPTS[number] if os.environ.get("RANK", "0") == "0" else ""
        if not self._closing_s:
            _end(number, text)
        if self._interrupted_at is None:
            if text:
                _print(text)
            self._interrupted_at = time.monotonic()
            _end_after(self._closing_s, number, "")
        elif time.monotonic() - self._interrupted_at > SAME_REQUEST_S:
            _end(number, "")


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delay KeyboardInterrupt to the end of this context. Call in the main thread."""
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received and callable(handler):
            handler(received[0], None)


def end_interrupted() -> NoReturn:
    """End this process after a KeyboardInterrupt, with the exit status of SIGINT."""
    _end(signal.SIGINT, "")


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing in the main thread. Another thread handles the signal."""


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _ignore)  # a second one must not interrupt the writing of data
    raise KeyboardInterrupt


def _end_after(seconds: float, number: int, text: str) -> None:
    deadline = threading.Timer(seconds, _end, (number, text))
    deadline.daemon = True
    deadline.start()


def _end(number: int, text: str) -> NoReturn:
    """End the process at once. A normal exit could wait for a lost process."""
    if text:
        _print(text)
    os._exit(128 + number)


def _print(text: str) -> None:
    print(f"rank {os.environ.get('RANK', '0')}: {text}", file=sys.stderr, flush=True)
