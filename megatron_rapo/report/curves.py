"""Turn rows of metrics.jsonl into curves with a limited number of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_rapo.monitor.charts import OPEN_ENDS

MOST_POINTS = 400
"""Most points of a curve, as many as the page can show. A longer curve has mean, lowest and highest of each stretch."""

Row = Mapping[str, Any]


def curves(rows: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Map each scalar to {"steps": [...], "values": [...]}, plus "low" and "high" if condensed. Not finite is None."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((row["step"], value))
    return {name: _curve(points) for name, points in found.items()}


def stacks(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Return scalars for a stacked chart, all at the same steps: {"steps": [...], "values": {scalar: [...]}}.

    A name that ends in / stands for all names that begin with it, except seconds/step. Long runs are reduced to means,
    which add up like the values. A scalar that a step lacks counts as 0.
    """
    known = dict.fromkeys(name for row in rows for name in row)
    chosen = [name for name in known if name != "seconds/step" and any(_named(name, each) for each in names)]
    of_steps = [row for row in rows if any(name in row for name in chosen)]
    stretches = _stretches(of_steps, MOST_POINTS)
    return {
        "steps": [stretch[-1]["step"] for stretch in stretches],
        "values": {
            name: [_rounded(sum(row.get(name) or 0.0 for row in stretch) / len(stretch)) for stretch in stretches]
            for name in chosen
        },
    }


def _named(name: str, pattern: str) -> bool:
    return name.startswith(pattern) if pattern.endswith(OPEN_ENDS) else name == pattern


def _curve(points: Sequence[tuple[int, float | None]]) -> dict[str, list[Any]]:
    stretches = _stretches(points, MOST_POINTS)
    finite = [[value for _, value in stretch if value is not None] for stretch in stretches]
    curve: dict[str, list[Any]] = {
        "steps": [stretch[-1][0] for stretch in stretches],
        "values": [_rounded(sum(values) / len(values)) if values else None for values in finite],
    }
    if len(stretches) < len(points):
        curve["low"] = [_rounded(min(values)) if values else None for values in finite]
        curve["high"] = [_rounded(max(values)) if values else None for values in finite]
    return curve


def _stretches(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Split the items, in order, into at most `most` parts that are not empty."""
    count = min(most, len(items))
    return [items[i * len(items) // count : (i + 1) * len(items) // count] for i in range(count)]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
