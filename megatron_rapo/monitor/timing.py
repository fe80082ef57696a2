"""Measure how long the phases of a step take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Measures seconds of wall-clock time by phase.

        with timer("rollout"):
            ...
        timer.take()  # {"rollout": 3.1}

    Phases never nest, so their sum is at most the duration of the step. The times of a repeated phase add up. Only the
    host's time is measured. On a GPU, end a phase where the host waits for the device anyway; otherwise the next phase
    gets the time of its kernels.
    """

    def __init__(self, on_start: Callable[[str], None] | None = None) -> None:
        """Call `on_start` with the name of each phase when it begins (for example `Console.phase`)."""
        self._seconds: dict[str, float] = {}
        self._current: str | None = None
        self._on_start = on_start

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the body as `phase`, also if it raises. Raises RuntimeError inside another phase."""
        if self._current is not None:
            raise RuntimeError(f"phase {phase}: starts inside phase {self._current}, so its time would count twice")
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
        """Add `seconds` that were measured elsewhere to `phase`."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Return the seconds by phase since the last call, in order of first use. Raises RuntimeError in a phase."""
        if self._current is not None:
            raise RuntimeError(f"take() inside phase {self._current}, which has no duration yet; call it afterwards")
        taken, self._seconds = self._seconds, {}
        return taken


def process_age_s() -> float:
    """Return the seconds since this process was started, to a clock tick (0.01 s).

    psutil is less exact: it rounds the machine's boot time to a whole second.
    """
    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()  # proc_pid_stat(5), from the third field on
    started_s = int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
