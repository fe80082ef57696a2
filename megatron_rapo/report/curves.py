"""Rows of metrics.jsonl to curves of a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_POINTS = 600
"""Of a curve: more than a screen shows side by side."""


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Scalar -> {"steps": [...], "values": [...]}; a value that was not finite is None."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((row["step"], value))
    return {name: _columns(thinned(points, MOST_POINTS)) for name, points in found.items()}


def thinned(points: Sequence[tuple[int, float | None]], most: int) -> list[tuple[int, float | None]]:
    """At most `most` of the `points`: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept: list[tuple[int, float | None]] = []
    stretches = most // 2
    for i in range(stretches):
        stretch = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        finite = [(value, step) for step, value in stretch if value is not None]
        if not finite:
            kept.append(stretch[0])
            continue
        ends = {min(finite), max(finite)}
        kept += [(step, value) for value, step in sorted(ends, key=lambda end: end[1])]
    return kept


def _columns(points: Sequence[tuple[int, float | None]]) -> dict[str, list[Any]]:
    values = [None if value is None else float(f"{value:.6g}") for _, value in points]
    return {"steps": [step for step, _ in points], "values": values}
