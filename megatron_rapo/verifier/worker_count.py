"""Choose the number of verifier processes that fit on a machine."""

from __future__ import annotations

import os
from pathlib import Path

MAX_WORKERS = 16
"""Most of one training process by itself: each takes 72 MiB and half a second of a core to start."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or microseconds of CPU in so many


def usable_cores(quota: Path = _QUOTA) -> int:
    """Return the cores that this process may use: its affinity, less where a container's CPU quota is below it."""
    cores = len(os.sched_getaffinity(0))
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(cores, round(int(allowed) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or no quota
        return cores


def workers_for(processes_on_node: int, cores: int) -> int:
    """Return how many workers each training process gets: its share of the node's cores less one for itself.

    At least 1, at most MAX_WORKERS.
    """
    return min(MAX_WORKERS, max(1, cores // processes_on_node - 1))
