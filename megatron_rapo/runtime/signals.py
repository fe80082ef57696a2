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

_NOW = {signal.SIGINT: "interrupted; --resume goes on from the latest checkpoint, or begins again where there is none."}
_SOON = {
    signal.SIGTERM: "told to end (SIGTERM), by the scheduler or because another process of this run has failed",
    signal.SIGUSR1: "told to end soon (SIGUSR1)",
}

SAME_REQUEST_S = 2.0
"""Signals within this time count as one request: a scheduler signals all processes, and launchers pass it on."""


class Stopped(Exception):
    """A process of the run has been told to stop."""


class Signals:
    """Handles the signals of this process, from construction on.

    Ctrl-C ends the process at once: output of a run is flushed at every step, and checkpoints are written atomically.
    With `closing_s` the main thread first gets KeyboardInterrupt, and has this many seconds to write its data.

    After SIGTERM or SIGUSR1 it continues to the next `check`, for at most `grace_s` seconds (0: not at all), or until
    a second signal.

    A process that waits in a collective runs no Python signal handler, so the signal wakes a thread instead.
    """

    def __init__(self, grace_s: float, *, closing_s: float = 0.0) -> None:
        self._grace_s, self._closing_s = grace_s, closing_s
        self._interrupted_at: float | None = None  # time.monotonic()
        self._asked = threading.Event()
        self._asked_at = 0.0  # time.monotonic()
        self._wake_end, signal_end = os.pipe()
        os.set_blocking(signal_end, False)
        for number in (*_NOW, *_SOON):
            signal.signal(number, _nothing)  # the thread handles it; the default would end silently or too late
        if closing_s:
            signal.signal(signal.SIGINT, _interrupt_once)
        signal.set_wakeup_fd(signal_end)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def check(self) -> None:
        """Raise Stopped on every process if one was told to stop. Collective over the world."""
        asked = torch.tensor(int(self._asked.is_set()))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked:
            raise Stopped

    def _watch(self) -> None:
        while True:
            for number in sorted(set(os.read(self._wake_end, 64)) & {*_NOW, *_SOON}):
                self._received(signal.Signals(number))

    def _received(self, number: signal.Signals) -> None:
        if number in _NOW:
            self._interrupt(number)
            return
        if self._asked.is_set() and time.monotonic() - self._asked_at < SAME_REQUEST_S:
            return
        if self._asked.is_set() or not self._grace_s:
            _end(number, f"{_SOON[number]}.")
        _say(f"{_SOON[number]}; stops within {self._grace_s:g} s.")
        self._asked_at = time.monotonic()
        self._asked.set()
        _end_after(self._grace_s, number, f"not done {self._grace_s:g} s after {number.name}; ends without saving.")

    def _interrupt(self, number: signal.Signals) -> None:
        text = _NOW[number] if os.environ.get("RANK", "0") == "0" else ""
        if not self._closing_s:
            _end(number, text)
        if self._interrupted_at is None:
            if text:
                _say(text)
            self._interrupted_at = time.monotonic()
            _end_after(self._closing_s, number, "")
        elif time.monotonic() - self._interrupted_at > SAME_REQUEST_S:
            _end(number, "")


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delay KeyboardInterrupt to the end of this context. Call in the main thread."""
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came and callable(handler):
            handler(came[0], None)


def end_interrupted() -> NoReturn:
    """End this process after KeyboardInterrupt, as Ctrl-C without `closing_s` does."""
    _end(signal.SIGINT, "")


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Do nothing in the main thread: another thread handles the signal."""


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _nothing)  # do not interrupt what is written now
    raise KeyboardInterrupt


def _end_after(seconds: float, number: int, text: str) -> None:
    deadline = threading.Timer(seconds, _end, (number, text))
    deadline.daemon = True
    deadline.start()


def _end(number: int, text: str) -> NoReturn:
    """End the process at once: an orderly exit could wait for a lost process."""
    if text:
        _say(text)
    os._exit(128 + number)


def _say(text: str) -> None:
    print(f"rank {os.environ.get('RANK', '0')}: {text}", file=sys.stderr, flush=True)
