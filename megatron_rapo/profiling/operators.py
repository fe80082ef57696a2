"""Find the most expensive operators of a traced step, phase by phase."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

LINES = 12  # operators shown of each phase
_US = 1e6  # microseconds in a second


@dataclass
class _Total:
    """Total of one operator in one phase."""

    calls: int = 0
    host_s: float = 0.0
    gpu_s: float = 0.0


def largest_operators(events: Iterable[Any], phases: Collection[str]) -> str:
    """Report the seconds of each phase, in order of first use, and its most expensive operators.

    `events` are torch.profiler's FunctionEvents. An operator's seconds exclude the operators that it calls. A range's
    own seconds, with its name in brackets, are those between its operators: Python and waiting. The work of other
    threads during a phase counts for that phase.
    """
    on_cpu = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in on_cpu
        if event.is_user_annotation and event.name in phases
    )
    seconds: dict[str, float] = defaultdict(float)
    for start, end, phase in spans:
        seconds[phase] += (end - start) / _US
    totals: dict[str, dict[str, _Total]] = {phase: defaultdict(_Total) for phase in seconds}
    for event in on_cpu:
        if (within := _phase_at(event.time_range.start, spans)) is not None:
            total = totals[within][f"[{event.name}]" if event.is_user_annotation else event.name]
            total.calls += 1
            total.host_s += event.self_cpu_time_total / _US
            total.gpu_s += event.self_device_time_total / _US
    return "\n".join(f"{phase}: {seconds[phase]:.3f} s\n{_table(totals[phase])}" for phase in seconds)


def _phase_at(time: float, spans: Sequence[tuple[float, float, str]]) -> str | None:
    """Return the phase at `time`, or None. Phases follow each other and never nest."""
    place = bisect_right(spans, time, key=lambda span: span[0]) - 1
    return spans[place][2] if place >= 0 and time < spans[place][1] else None


def _table(totals: dict[str, _Total]) -> str:
    on_gpu = torch.cuda.is_available()
    ranked = sorted(totals.items(), key=lambda item: max(item[1].host_s, item[1].gpu_s), reverse=True)
    lines = [_line("host s", "gpu s" if on_gpu else "", "calls", "operator")]
    for operator, total in ranked[:LINES]:
        lines.append(_line(f"{total.host_s:.3f}", f"{total.gpu_s:.3f}" if on_gpu else "", str(total.calls), operator))
    return "\n".join(lines) + "\n"


def _line(host: str, gpu: str, calls: str, operator: str) -> str:
    return f"{host:>9}{gpu:>{9 if gpu else 0}}{calls:>8}  {operator}"
