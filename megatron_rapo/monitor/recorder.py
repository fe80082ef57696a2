"""Record a run's steps: in metrics.jsonl, in rollout files, and with the writers of monitor.writers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.monitor.rollouts import RecordedCompletion, drop_rollouts_after, write_rollouts
from megatron_rapo.monitor.scalars import HISTOGRAMS, describe
from megatron_rapo.monitor.writer_interface import Histograms, Sample, Scalars, Writer
from megatron_rapo.monitor.writer_registry import open_writer
from megatron_rapo.runtime.atomic_write import write_bytes_atomically
from megatron_rapo.runtime.run_folder import RunFolder


class Recorder:
    """Writes each step's scalars and samples into the run's folder. Only rank 0 has one.

    Each step is a line of metrics.jsonl: {"step": 3, "reward/mean": 0.41, ...}. A number that is not finite is null
    there, because JSON has no NaN. The writers get it unchanged.
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
        """Open `folder` for a new run, or to continue after step `resume_step` (later steps are dropped).

        Each of the `writers` (names in monitor.writers) gets the run's `settings`. If one fails later, it is dropped
        and `warn` gets a message; but a failure of TensorBoard is raised. Raises InputError if a writer cannot start,
        and FileExistsError if `resume_step` is None and the folder already has metrics.
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
        self, step: int, scalars: Scalars, samples: Sequence[Sample] = (), histograms: Histograms | None = None
    ) -> None:
        """Record `scalars` of `step` and flush. A second call for the latest step adds to its line.

        Only the writers get `samples` and `histograms` (name -> values). Raises ValueError for a name that scalars.py
        does not declare, an earlier step, or a name that the step already has.
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
        """Record completions of `step`, token by token, in a separate file."""
        write_rollouts(self._folder, step, completions)

    def close(self) -> None:
        """Close the files and the writers. A second call does nothing."""
        self._file.close()
        for name in list(self._writers):
            self._guarded(name, lambda writer: writer.close())
            self._writers.pop(name, None)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _guarded(self, name: str, action: Callable[[Writer], None]) -> None:
        """Apply `action` to a writer. Drop the writer if it fails: a dead service must not end a run of weeks.

        An error of TensorBoard is raised, because its files are on the same disk as the run's other files.
        """
        try:
            action(self._writers[name])
        except Exception as error:  # of any kind: each service's library has its own exceptions
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
        # Overwrite only the line's closing brace, so that the existing values are never lost.
        self._file.seek(-len(b"}\n"), os.SEEK_END)
        self._file.write(b", " + _line(row)[1:])
        self._file.flush()
        self._last |= row


def _opened(name: str, folder: Path, settings: Mapping[str, Any], first_step: int) -> Writer:
    try:
        return open_writer(name, folder, settings, first_step=first_step)
    except Exception as error:  # of any kind: each service's library has its own exceptions
        if name == "tensorboard":
            raise
        raise InputError(
            f"monitor.writers: {name} cannot start ({type(error).__name__}: {error}); fix this, or leave {name} out."
        ) from error


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _drop_steps_after(path: Path, step: int) -> dict[str, Any]:
    """Remove the steps after `step` from the metrics file. Return the last row that remains."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    if rows and rows[-1]["step"] == step:  # its evaluation comes after the checkpoint and will run again
        rows[-1] = {name: value for name, value in rows[-1].items() if not name.startswith("eval/")}
    write_bytes_atomically(path, b"".join(_line(row) for row in rows))
    return rows[-1] if rows else {"step": -1}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, without an incomplete last line (cut off by a kill or being written)."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line of metrics ({error}); fix or remove it.") from None
    return rows
