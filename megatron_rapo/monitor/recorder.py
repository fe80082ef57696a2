"""What stays of a run's steps: metrics.jsonl, rollouts, and what monitor.writers makes of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.monitor.rollouts import RecordedCompletion, drop_rollouts_after, write_rollouts
from megatron_rapo.monitor.scalars import HISTOGRAMS, describe
from megatron_rapo.monitor.writer_interface import Sample, Writer
from megatron_rapo.monitor.writer_registry import open_writer
from megatron_rapo.runtime.atomic_write import write_bytes_atomically
from megatron_rapo.runtime.run_folder import RunFolder


class Recorder:
    """Writes each step's scalars and samples into `folder`. One process of a run makes one.

    A step is one line of metrics.jsonl: {"step": 3, "reward/mean": 0.41, ...}; a number that is not
    finite is null there (JSON has no NaN) and itself in TensorBoard.
    """

    def __init__(
        self,
        folder: Path,
        *,
        writers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        """Open `folder` for a new run, or to go on after step `resume_step` (later steps are dropped).

        `writers` (monitor.writers) are told the run's `settings`; one that fails is left out from then on, and `warn`
        is told. Raises InputError for one that cannot even start, FileExistsError where the folder has metrics and
        `resume_step` is None.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = RunFolder(folder).metrics
        self._last: dict[str, Any] = {"step": -1}
        if resume_step is not None:
            self._last = _drop_steps_after(path, resume_step)
            drop_rollouts_after(folder, resume_step)
        elif path.exists() and path.stat().st_size:
            raise FileExistsError(
                f"{path}: holds the metrics of another run; resume that run, or give this one another run.folder."
            )
        path.touch()
        self._file = path.open("r+b")
        self._folder, self._warn = folder, warn
        first_step = 0 if resume_step is None else resume_step + 1
        self._writers: dict[str, Writer] = {name: _opened(name, folder, settings or {}, first_step) for name in writers}

    def log(
        self,
        step: int,
        scalars: Mapping[str, float],
        samples: Sequence[Sample] = (),
        histograms: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Record `scalars` of `step` and flush; a second call for the latest step adds to its line.

        `samples` and `histograms` (name -> values) are for the writers. Raises ValueError for a name that scalars.py
        does not know, an earlier step, or a name that the step already has.
        """
        if unknown := (histograms or {}).keys() - HISTOGRAMS.keys():
            raise ValueError(
                f"histogram {min(unknown)}: no such histogram; declare it in megatron_rapo/monitor/scalars.py."
            )
        for name in scalars:
            describe(name)
        if step < self._last["step"]:
            raise ValueError(f"step {step}: step {self._last['step']} is recorded already; steps only go up")
        values = {name: float(value) for name, value in scalars.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if step > self._last["step"]:
            self._append({"step": step, **row})
        elif repeated := sorted(row.keys() & self._last.keys()):
            raise ValueError(f"step {step}: has {', '.join(repeated)} already")
        elif row:
            self._extend(row)
        for name in list(self._writers):
            self._guarded(name, lambda writer: writer.write(step, values, samples, histograms or {}))

    def rollouts(self, step: int, completions: Sequence[RecordedCompletion]) -> None:
        """Record completions of `step`, token by token, in a file of their own."""
        write_rollouts(self._folder, step, completions)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._file.close()
        for name in list(self._writers):
            self._guarded(name, lambda writer: writer.close())
            self._writers.pop(name, None)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _guarded(self, name: str, action: Callable[[Writer], None]) -> None:
        """A service that does not answer must not end a run of weeks. TensorBoard is files, on the disk of the rest."""
        try:
            action(self._writers[name])
        except Exception as error:  # of any kind: each service's library has its own
            if name == "tensorboard":
                raise
            del self._writers[name]
            self._warn(f"WARNING: {name} failed and gets nothing more of this run ({type(error).__name__}: {error})")

    def _append(self, row: dict[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(_line(row))
        self._file.flush()
        self._last = row

    def _extend(self, row: dict[str, Any]) -> None:
        # Over the line's closing brace: what is there already stays there whatever happens.
        self._file.seek(-len(b"}\n"), os.SEEK_END)
        self._file.write(b", " + _line(row)[1:])
        self._file.flush()
        self._last |= row


def _opened(name: str, folder: Path, settings: Mapping[str, Any], first_step: int) -> Writer:
    try:
        return open_writer(name, folder, settings, first_step=first_step)
    except Exception as error:  # of any kind: each service's library has its own
        if name == "tensorboard":
            raise
        raise InputError(
            f"monitor.writers: {name} cannot start ({type(error).__name__}: {error}); see to it, or leave it out."
        ) from error


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _drop_steps_after(path: Path, step: int) -> dict[str, Any]:
    """Rewrite the metrics without the steps after `step`; returns the last row that stays."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    if rows and rows[-1]["step"] == step:  # its held-out problems, which come after the checkpoint, are asked again
        rows[-1] = {name: value for name, value in rows[-1].items() if not name.startswith("eval/")}
    write_bytes_atomically(path, b"".join(_line(row) for row in rows))
    return rows[-1] if rows else {"step": -1}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that a kill cut short, or that is being written, is left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line of metrics ({error}); mend or remove it.") from None
    return rows
