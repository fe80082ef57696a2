"""What the trainer says about itself: one object on every process, of which the first alone writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

from megatron_rapo.monitor.console import Console
from megatron_rapo.monitor.recorder import Recorder
from megatron_rapo.monitor.rollouts import RecordedCompletion
from megatron_rapo.monitor.timing import PhaseTimer, process_age_s
from megatron_rapo.monitor.writer_interface import Sample


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
        self._started_s = time.monotonic()
        self._seconds: dict[str, float] = {}  # by phase, of this process
        self._earlier_seconds: dict[str, float] = {}  # of those that the run was begun in

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
        age_s = process_age_s()
        self._started_s = time.monotonic() - age_s
        self._timer.add("launch", age_s)

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
        """Seconds by phase over the whole run so far, this process' clock; "other" is what was in no phase."""
        self._take()
        other = time.monotonic() - self._started_s - sum(self._seconds.values())
        seconds = _summed(self._earlier_seconds, {**self._seconds, "other": other})
        return {name: round(value, 3) for name, value in seconds.items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """For a checkpoint: what adds up over a run, however often it is interrupted."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Add to what was timed so far what had been when `state_dict` was taken."""
        self._earlier_seconds = _summed(self._earlier_seconds, state["seconds"])

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
        self._seconds = _summed(self._seconds, taken)
        return taken


def _summed(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """By name, in the order of first appearance."""
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}
