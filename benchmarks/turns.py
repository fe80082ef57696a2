"""Sides of a measurement that take turns in one process, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

WARM_UP = 1  # turns that do not count

Side = Callable[[], object]


class Turn(NamedTuple):
    wall_s: float
    cpu_s: float  # of all threads; with others at work on the machine the steadier of the two


def take_turns(sides: Mapping[str, Side], repeats: int) -> dict[str, list[Turn]]:
    """Return the seconds of each counted turn, by side. Every other turn runs backwards, to be fair to all sides."""
    taken: dict[str, list[Turn]] = {name: [] for name in sides}
    for turn in range(WARM_UP + repeats):
        for name, side in list(sides.items())[:: -1 if turn % 2 else 1]:
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            side()
            if turn >= WARM_UP:
                taken[name].append(Turn(time.perf_counter() - start_s, time.process_time() - start_cpu_s))
    return taken


def figures(taken: Mapping[str, Sequence[Turn]], base: str) -> dict[str, dict[str, Any]]:
    """Return medians by side, and medians of the turns' own ratios to the side `base`."""
    return {
        name: {
            "wall_s": round(statistics.median(turn.wall_s for turn in turns), 5),
            "cpu_s": round(statistics.median(turn.cpu_s for turn in turns), 5),
            f"of_{base}": round(statistics.median(a.wall_s / b.wall_s for a, b in _pairs(turns, taken[base])), 3),
            f"cpu_of_{base}": round(statistics.median(a.cpu_s / b.cpu_s for a, b in _pairs(turns, taken[base])), 3),
        }
        for name, turns in taken.items()
    }


def _pairs(turns: Sequence[Turn], others: Sequence[Turn]) -> list[tuple[Turn, Turn]]:
    return list(zip(turns, others, strict=True))
