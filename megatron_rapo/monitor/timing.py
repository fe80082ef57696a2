"""Where the time of a step goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Seconds of wall-clock time by phase.

        with timer("rollout"):
            ...
        timer.take()  # {"rollout": 3.1}

    Phases follow each other and never nest, so that they add up to at most the step; a phase entered
    several times adds up. Only the host's time is measured: on a GPU a phase must end where the host
    waits for the device anyway, or its kernels count for the next one.
    """

    def __init__(self, on_start: Callable[[str], None] | None = None) -> None:
        """`on_start` is called with the name of each phase that begins (Console.phase fits)."""
        self._seconds: dict[str, float] = {}
        self._current: str | None = None
        self._on_start = on_start

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the body as `phase`, also when it raises. Raises RuntimeError inside another phase."""
        if self._current is not None:
            raise RuntimeError(f"phase {phase}: starts inside phase {self._current}, whose time it would count twice")
        self._current = phase
        if self._on_start is not None:
            self._on_start(phase)
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - start)
            self._current = None

    def add(self, phase: str, seconds: float) -> None:
        """Count `seconds`, which were timed otherwise, as `phase`."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call, in order of first use. Raises RuntimeError inside a phase."""
        if self._current is not None:
            raise RuntimeError(
                f"take() inside phase {self._current}, which has no duration yet; call it after the phase"
            )
        taken, self._seconds = self._seconds, {}
        return taken


def process_age_s() -> float:
    """Seconds since this process was started, in steps of a clock tick (0.01 s).

    Not psutil's, which counts from a whole second of the wall clock at which the machine was started.
    """
    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()  # proc_pid_stat(5) from the third on; the second is the name
    started_s = int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
