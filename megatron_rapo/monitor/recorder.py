"""What stays of a run's steps: metrics.jsonl, and the same in TensorBoard event files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.monitor.scalars import describe
from megatron_rapo.monitor.text import without_controls

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion, to be read by people."""

    prompt: str
    completion: str
    answer: str  # the problem's reference answer
    reward: float

    def markdown(self) -> str:
        """The sample with every part of it as literal text, whatever markup the model wrote."""
        parts = {"prompt": self.prompt, "completion": self.completion, "answer": self.answer}
        blocks = [f"**reward {self.reward:g}**", *(f"**{name}**\n\n{_literal(text)}" for name, text in parts.items())]
        return "\n\n".join(blocks)


class Recorder:
    """Writes each step's scalars and samples into `folder`. One process of a run makes one.

    A step is one line of metrics.jsonl: {"step": 3, "reward/mean": 0.41, ...}; a number that is not
    finite is null there (JSON has no NaN) and itself in TensorBoard.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, resume_step: int | None = None) -> None:
        """Open `folder` for a new run, or to go on after step `resume_step` (later steps are dropped).

        Raises FileExistsError where the folder has metrics and `resume_step` is None.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        self._last: dict[str, Any] = {"step": -1}
        if resume_step is not None:
            self._last = _drop_steps_after(path, resume_step)
        elif path.exists() and path.stat().st_size:
            raise FileExistsError(
                f"{path}: holds the metrics of another run; resume that run, or give this one another run.folder."
            )
        path.touch()
        self._file = path.open("r+b")
        self._events = None
        if tensorboard:
            from megatron_rapo.monitor.events import EventFile  # 0.2 s of imports, only where it is wanted

            first_step = 0 if resume_step is None else resume_step + 1
            self._events = EventFile(folder / TENSORBOARD_FOLDER, first_step=first_step)

    def log(self, step: int, scalars: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Record `scalars` of `step` and flush; a second call for the latest step adds to its line.

        Raises ValueError for a name that scalars.py does not know, an earlier step, or a name that the
        step already has.
        """
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
        if self._events is not None:
            self._events.write(step, values, [sample.markdown() for sample in samples])

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _drop_steps_after(path: Path, step: int) -> dict[str, Any]:
    """Rewrite the metrics without the steps after `step`; returns the last row that stays."""
    rows = [row for row in _read_rows(path) if row["step"] <= step]
    if rows and rows[-1]["step"] == step:  # its held-out problems, which come after the checkpoint, are asked again
        rows[-1] = {name: value for name, value in rows[-1].items() if not name.startswith("eval/")}
    replacement = path.with_name(path.name + ".new")
    with replacement.open("wb") as file:
        file.writelines(_line(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
    replacement.replace(path)  # atomic: the old lines or the new ones, never half
    return rows[-1] if rows else {"step": -1}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that a kill cut short is left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line of metrics ({error}); mend or remove it.") from None
    return rows


def _literal(text: str) -> str:
    """An indented code block: nothing in it is markup, and no line of it can end it."""
    return "\n".join("    " + line for line in without_controls(text, "\N{REPLACEMENT CHARACTER}").split("\n"))
