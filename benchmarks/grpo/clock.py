"""What the steps of one process took, and what its side makes of it in a file of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


class StepClock:
    """The ends of steps. What each took is known of all but the first, whose beginning is not."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def step_ended(self) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())

    @property
    def wall_s(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self._wall)]

    @property
    def cpu_s(self) -> list[float]:
        """Return the CPU seconds of each step, user and system, of all threads of this process."""
        return [later - earlier for earlier, later in pairwise(self._cpu)]


def write_steps(
    output: Path, rank: int, clock: StepClock, parts: Sequence[Mapping[str, float]], sampled: Sequence[int]
) -> None:
    """Write a rank's results: the seconds of each step but the first by variant.PARTS, and the tokens of all."""
    found = {"parts_s": parts, "cpu_s": clock.cpu_s, "sampled": sampled}
    _of_rank(output, rank).write_text(json.dumps(found))


def read_steps(output: Path, processes: int) -> dict[str, Any]:
    """Return the results of the first rank, with the CPU time of all ranks."""
    ranks = [json.loads(_of_rank(output, rank).read_text()) for rank in range(processes)]
    return {**ranks[0], "cpu_s": [sum(seconds) for seconds in zip(*(rank["cpu_s"] for rank in ranks), strict=True)]}


def _of_rank(output: Path, rank: int) -> Path:
    return output.with_suffix(f".{rank}.json")
