"""--profile: where the time of single steps goes, operator by operator, under the names of the phases."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_rapo.checkpoints import checkpoint_folder
from megatron_rapo.config import ConfigError

PROFILES = "profile"
"""Folder within run.folder: of each profiled step one with a trace and a table of each process."""
_TABLE_ROWS = 40


class Profiler:
    """Traces the chosen `steps` of this process, and does nothing in the others."""

    def __init__(self, folder: Path, steps: Collection[int], *, rank: int) -> None:
        self.folder, self._steps, self._rank = folder / PROFILES, frozenset(steps), rank
        self._active = False

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Trace the body where `step` is one of those; written also when it raises."""
        if step not in self._steps:
            yield
            return
        on_gpu = torch.cuda.is_available()
        self._active = True
        try:
            with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as traced:
                yield
        finally:
            self._active = False
            self._write(traced, checkpoint_folder(self.folder, step), "self_cuda_time_total" if on_gpu else None)

    def phase(self, name: str) -> AbstractContextManager[object]:
        """A range of that name in the trace, around the body."""
        return record_function(name) if self._active else nullcontext()

    def _write(self, traced: profile, folder: Path, sort_by: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(folder / f"rank-{self._rank}.json.gz"))
        table = traced.key_averages().table(sort_by=sort_by or "self_cpu_time_total", row_limit=_TABLE_ROWS)
        (folder / f"rank-{self._rank}.txt").write_text(table)


def check_profiled(steps: Collection[int], *, first: int, last: int) -> None:
    """Raises ConfigError for a step that the run, which takes `first` to `last`, does not take."""
    missing = sorted(step for step in steps if not first <= step <= last)
    if missing:
        raise ConfigError(
            f"--profile {','.join(map(str, missing))}: this run takes steps {first} to {last}; name some of those."
        )
