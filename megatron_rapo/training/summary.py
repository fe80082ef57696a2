"""Write summary.json at the end of a run, and show the final tables and where the results are."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch.distributed as dist

from megatron_rapo.monitor import Monitor
from megatron_rapo.runtime.atomic_write import write_text_atomically
from megatron_rapo.runtime.run_folder import RunFolder


def summarise(
    folder: RunFolder, monitor: Monitor, scores: Mapping[str, Mapping[str, float]], where: Mapping[str, str]
) -> None:
    """Write and show `scores` (when -> metric -> value), seconds by phase, and `where` the results are."""
    by_metric: dict[str, dict[str, float]] = {}
    for when, values in scores.items():
        for name, value in values.items():
            by_metric.setdefault(name, {})[when] = value
    seconds = monitor.seconds()
    if dist.get_rank() == 0:
        content = {**by_metric, **where, "seconds": seconds}
        write_text_atomically(folder.summary, json.dumps(content, indent=2) + "\n")
    if by_metric:
        rows = [[name, *(f"{value:.3f}" for value in values.values())] for name, values in by_metric.items()]
        monitor.table("held-out problems", ["", *scores], rows)
    monitor.table("seconds", ["phase", "s"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
    for name, place in where.items():
        monitor.message(f"{name.replace('_', ' ')}: {place}")
