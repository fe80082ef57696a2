"""What the trainer says about itself: one object on every process, of which the first alone writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

import psutil

from megatron_rapo.monitor.console import Console
from megatron_rapo.monitor.recorder import Recorder
from megatron_rapo.monitor.rollouts import RecordedCompletion
from megatron_rapo.monitor.timing import PhaseTimer
from megatron_rapo.monitor.writers import Sample


class Monitor:
    """Times phases everywhere; records and shows where it is given a recorder and a console (the first process).

    `annotate(phase)` is around each phase too.
    """

    def __init__(
        self,
        recorder: Recorder | None = None,
        console: Console | None = None,
        *,
        annotate: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._recorder, self._console, self._annotate = recorder, console, annotate
        self._timer = PhaseTimer(on_start=console.phase if console else None)
        self._total_seconds: dict[str, float] = {}

    def begin_step(self) -> None:
        """What was timed so far belongs to no step (starting, evaluating, saving)."""
        self._take()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body and say on the terminal what is going on."""
        with self._timer(name), self._annotate(name):
            yield

    def launched(self) -> None:
        """What passed since the start of this process is the phase "launch"."""
        self._timer.add("launch", time.time() - psutil.Process().create_time())

    def step(
        self,
        step: int,
        scalars: Mapping[str, float],
        samples: Sequence[Sample],
        histograms: Mapping[str, Sequence[float]],
    ) -> None:
        """Record a finished step together with its seconds by phase since `begin_step`."""
        seconds = {f"seconds/{name}": value for name, value in self._take().items()}
        if self._recorder:
            self._recorder.log(step, {**scalars, **seconds}, samples, histograms)
        if self._console:
            self._console.step(step, {**scalars, **seconds})

    def rollouts(self, step: int, completions: Sequence[RecordedCompletion]) -> None:
        """Record single completions of `step`."""
        if self._recorder:
            self._recorder.rollouts(step, completions)

    def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record what held-out problems say after `step`."""
        if self._recorder:
            self._recorder.log(step, scalars)

    def message(self, text: str) -> None:
        """Something that happens once."""
        if self._console:
            self._console.message(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A closing table."""
        if self._console:
            self._console.table(title, columns, rows)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase over the whole run so far, this process' clock."""
        self._take()
        return {name: round(value, 3) for name, value in self._total_seconds.items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """For a checkpoint: what adds up over a run, however often it is interrupted."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Add to what was timed so far what had been when `state_dict` was taken."""
        for name, value in state["seconds"].items():
            self._total_seconds[name] = self._total_seconds.get(name, 0.0) + value

    def __enter__(self) -> Monitor:
        if self._console:
            self._console.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console:
            self._console.__exit__(kind, error, traceback)
        if self._recorder:
            self._recorder.close()

    def _take(self) -> dict[str, float]:
        taken = self._timer.take()
        for name, value in taken.items():
            self._total_seconds[name] = self._total_seconds.get(name, 0.0) + value
        return taken
