"""Report what the trainer does: an object on every process, of which only that of rank 0 writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from megatron_rapo.monitor.console import Console
from megatron_rapo.monitor.recorder import Recorder
from megatron_rapo.monitor.rollouts import RecordedCompletion
from megatron_rapo.monitor.timing import PhaseTimer, process_age_s
from megatron_rapo.monitor.writer_interface import Histograms, Sample, Scalars


class Monitor:
    """Times phases on every process. Records and shows them if it has a recorder and a console (rank 0).

    Each phase also runs inside the context manager `annotate(phase)`.
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
        self._seconds: dict[str, float] = {}  # by phase, in this process
        self._earlier_seconds: dict[str, float] = {}  # by phase, in processes before a resume

    def begin_step(self) -> None:
        """Begin a step. Phases timed before (starting, evaluating, saving) do not count for it."""
        self._take()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body as the phase `name`, and show the name on the terminal."""
        with self._timer(name), self._annotate(name):
            yield

    def launched(self) -> None:
        """Count the time since the start of this process as the phase "launch"."""
        age_s = process_age_s()
        self._started_s = time.monotonic() - age_s
        self._timer.add("launch", age_s)

    def step(self, step: int, scalars: Scalars, samples: Sequence[Sample], histograms: Histograms) -> None:
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

    def evaluation(self, step: int, scalars: Scalars) -> None:
        """Record the scores on held-out problems after `step`."""
        if self._recorder:
            self._recorder.log(step, scalars)

    def message(self, text: str) -> None:
        """Print a message on the console."""
        if self._console:
            self._console.message(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table at the end of the run."""
        if self._console:
            self._console.table(title, columns, rows)

    def seconds(self) -> dict[str, float]:
        """Return the seconds by phase over the whole run so far, by this process's clock.

        "other" is the time outside all phases.
        """
        self._take()
        other = time.monotonic() - self._started_s - sum(self._seconds.values())
        seconds = _summed(self._earlier_seconds, {**self._seconds, "other": other})
        return {name: round(value, 3) for name, value in seconds.items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the state for a checkpoint: the seconds by phase."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Add the seconds of an earlier `state_dict`."""
        self._earlier_seconds = _summed(self._earlier_seconds, state["seconds"])

    def __enter__(self) -> Monitor:
        if self._console:
            self._console.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._console:
            self._console.__exit__(*exception)
        if self._recorder:
            self._recorder.close()

    def _take(self) -> dict[str, float]:
        taken = self._timer.take()
        self._seconds = _summed(self._seconds, taken)
        return taken


def _summed(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Add the values by name, in the order in which the names first appear."""
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}
