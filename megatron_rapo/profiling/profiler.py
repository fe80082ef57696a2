"""Write Chrome traces of chosen steps with torch.profiler: of the CPU, and of the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_rapo.config import ConfigError
from megatron_rapo.errors import shortened
from megatron_rapo.profiling.operators import largest_operators
from megatron_rapo.runtime import gc_control
from megatron_rapo.runtime.atomic_write import write_text_atomically
from megatron_rapo.runtime.run_folder import RunFolder, step_name
from megatron_rapo.runtime.signals import interrupts_wait

CLOSING_S = 20.0
"""Time after Ctrl-C to write the trace of the interrupted step."""


class Profiler:
    """Traces the chosen `steps` of this process. Does nothing in other steps.

    RUN/profile has a folder for each profiled step, with a trace and a table of each process.
    """

    def __init__(self, folder: Path, steps: Collection[int], *, rank: int) -> None:
        self.folder, self._steps, self._rank = RunFolder(folder).profile, frozenset(steps), rank
        self._active = False
        self._phases: set[str] = set()
        self._traced: tuple[int, profile] | None = None

    @property
    def has_trace(self) -> bool:
        """Return whether there is a traced step that is not written yet."""
        return self._traced is not None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Trace the body if `step` is a chosen one, also if it raises."""
        if step not in self._steps:
            yield
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        trace = profile(activities=activities)
        try:
            with interrupts_wait():
                trace.start()
            self._active = True
            yield
        finally:
            self._active = False
            with interrupts_wait():
                trace.stop()
                self._traced = step, trace

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Record the body as a range called `name` in the trace."""
        if not self._active:
            return nullcontext()
        self._phases.add(name)
        return record_function(name)

    def write(self, say: Callable[[str], None]) -> None:
        """Write the traced step, if there is one, and report where.

        Call this after the step. After an error or a signal, more urgent work can so be done first.
        """
        if self._traced is None:
            return
        (step, trace), self._traced = self._traced, None
        folder = self.folder / step_name(step)
        folder.mkdir(parents=True, exist_ok=True)
        with interrupts_wait(), gc_control.unsearched():
            trace.export_chrome_trace(str(folder / f"rank-{self._rank}.json.gz"))
            operators = largest_operators(trace.events(), self._phases)
            write_text_atomically(folder / f"rank-{self._rank}.txt", operators)
        say(f"profile of step {step}: {folder}; rank-*.txt lists what took longest")


def check_profiled(steps: Collection[int], *, first: int, last: int) -> None:
    """Check that the run takes all profiled `steps`. Raises ConfigError for a step outside `first` to `last`."""
    missing = sorted(step for step in steps if not first <= step <= last)
    if missing:
        named = shortened(",".join(map(str, missing)))
        raise ConfigError(f"--profile {named}: this run takes steps {first} to {last}; name some of those.")
