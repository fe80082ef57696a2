"""How long a test waits before it takes a wait for a hang: no machine is so busy that work takes as long."""

import time
from collections.abc import Callable

HANG_S = 2400.0
"""Of a process, or of something that must happen; it takes seconds to two minutes where the cores are free."""
COLLECTIVE_S = 1200.0
"""Of processes that wait for each other: below HANG_S, so that they say first which of them was missing."""


def cpu_s(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of processor that a call takes: to compare with those of another call, never with a number."""
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started
