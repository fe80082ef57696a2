"""Choose the number of verifier processes that fit on a machine."""

from __future__ import annotations

import os
from pathlib import Path

MAX_WORKERS = 16
"""Most workers of one training process. Starting one takes 72 MiB and half a second of a core."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # allowed microseconds of CPU (or "max") and their period in microseconds


def usable_cores(quota: Path = _QUOTA) -> int:
    """Return how many cores this process may use: its CPU affinity, or a container's CPU quota if that is lower."""
    cores = len(os.sched_getaffinity(0))
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(cores, round(int(allowed) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or no quota
        return cores


def workers_for(processes_on_node: int, cores: int) -> int:
    """Return the number of workers per training process: its share of the node's cores, minus one for itself.

    At least 1 and at most MAX_WORKERS.
    """
    return min(MAX_WORKERS, max(1, cores // processes_on_node - 1))
