"""Show the progress of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from megatron_rapo.monitor.text import without_controls

HEADLINES: dict[str, tuple[str, str]] = {
    "reward/mean": ("reward", ".3f"),
    "reward/pass_rate": ("pass_rate", ".3f"),
    "reward/no_answer": ("no_answer", ".3f"),
    "rollout/truncated": ("truncated", ".3f"),
    "policy/kl": ("kl", ".3g"),
    "policy/entropy": ("entropy", ".3f"),
    "rollout/completion_tokens": ("tokens", ".1f"),
    "throughput/tokens_per_s": ("tokens/s", ".0f"),
}
"""Scalars that are shown at every step: name -> (label, number format)."""

_SECONDS = "seconds/"
_CELL_WIDTH = 19  # characters of one label with its number; three fit in 60 columns with room for a ^C
_RECENT_STEPS = 10  # steps from which the remaining time is estimated
_TABLE_STEPS, _OTHER_LINES = 6, 8  # most steps in the table; lines of the display that are not its rows
_LEAST_BAR = 8  # characters; a shorter progress bar is not shown


class Console:
    """Shows the progress of a run of `total_steps` steps, as a context manager.

    On a terminal it redraws in place: progress, remaining time, current phase, a table of the latest steps and the
    durations of the last step's phases. Elsewhere it prints a line per step and message, without control characters:

        21:12:10 step 3/30 2:31 left reward 0.410 pass_rate 0.380 ... rollout 3.1s train 1.9s step 5.4s
    """

    def __init__(self, total_steps: int, *, stream: TextIO | None = None, width: int | None = None) -> None:
        """Write to `stream` (default: stdout), `width` characters wide (default: the terminal's width).

        With `total_steps=0` show no progress, only messages and tables.
        """
        self._total_steps = total_steps
        self._stream = stream or sys.stdout
        # The stream decides, not variables such as FORCE_COLOR: a log file never gets control characters.
        self._is_live = self._stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._rich = rich.console.Console(
            file=self._stream, width=width, force_terminal=self._is_live, highlight=False, markup=False
        )
        self._live: Live | None = None
        self._step = 0
        self._scalars: Mapping[str, float] = {}
        self._phase, self._phase_start_s = "starting", time.monotonic()
        self._last_step_s: float | None = None
        self._recent_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._latest: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=_TABLE_STEPS)

    def __enter__(self) -> Console:
        if self._is_live and self._total_steps:
            self._live = Live(
                get_renderable=self._render, console=self._rich, refresh_per_second=4, vertical_overflow="crop"
            )
            self._live.start()
            # torchrun kills its processes with a signal, after which a hidden cursor would stay hidden.
            self._rich.show_cursor(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end_live("done" if kind is None else "stopped")

    def message(self, text: str) -> None:
        """Print `text`, above the live display."""
        if self._is_live:
            self._rich.print(without_controls(text), soft_wrap=True)
        else:
            print(without_controls(text), file=self._stream, flush=True)

    def phase(self, name: str) -> None:
        """Set the current phase, which only the live display shows."""
        self._phase, self._phase_start_s = name, time.monotonic()

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show a finished step (counted from 1) with its scalars (names from scalars.py)."""
        now_s = time.monotonic()
        if "seconds/step" in scalars:
            self._recent_s.append(scalars["seconds/step"])
        elif self._last_step_s is not None:
            self._recent_s.append(now_s - self._last_step_s)
        self._step, self._scalars, self._last_step_s = step, dict(scalars), now_s
        self._latest.append((step, self._scalars))
        if not self._is_live:
            cells = [f"{label} {number}" for label, number in (*_headlines(scalars), *_durations(scalars))]
            progress = f"{time.strftime('%H:%M:%S')} step {step}/{self._total_steps} {self._remaining()}"
            print(" ".join([progress, *cells]), file=self._stream, flush=True)
        elif self._live is not None:
            self._live.refresh()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """End the live display and print a table. The first column is text, the others are numbers."""
        self._end_live("done")
        title, columns = without_controls(title), [without_controls(column) for column in columns]
        rows = [[without_controls(cell) for cell in row] for row in rows]
        if self._is_live:
            table = Table(title=title, title_justify="left", title_style="bold")
            for i, column in enumerate(columns):
                table.add_column(column, justify="right" if i else "left", overflow="fold")
            for row in rows:
                table.add_row(*row)
            self._rich.print(table)
        else:
            print("\n".join([title, *_plain_table([columns, *rows])]), file=self._stream, flush=True)

    def _end_live(self, phase: str) -> None:
        if self._live is not None:
            self.phase(phase)
            self._live.stop()  # draws once more
            self._live = None

    def _render(self) -> RenderableType:
        columns = self._columns()
        left_over = [name for name in HEADLINES if name not in columns]
        cells = (*_headlines(self._scalars, left_over), *_durations(self._scalars))
        phase = Text(f"{self._phase} {_clock(time.monotonic() - self._phase_start_s)}", style="dim")
        return Group(self._progress(), phase, self._steps(columns), self._grid(cells))

    def _progress(self) -> RenderableType:
        done, left = f"step {self._step}/{self._total_steps}", self._remaining()
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        cells: list[RenderableType] = [Text(done, style="bold")]
        if len(done) + len(left) + 2 + _LEAST_BAR <= self._rich.width:
            line.add_column(ratio=1)
            cells.append(ProgressBar(total=self._total_steps, completed=self._step))
        line.add_column(no_wrap=True, justify="right")
        line.add_row(*cells, left)
        return line

    def _columns(self) -> dict[str, int]:
        """Return the headlines that fit beside the step number, in order, with their widths in characters."""
        columns: dict[str, int] = {}
        room = self._rich.width - max(len("step"), len(str(self._total_steps)))
        for name, (label, spec) in HEADLINES.items():
            numbers = [format(scalars[name], spec) for _, scalars in self._latest if name in scalars]
            if not numbers:
                continue
            width = max(map(len, (label, *numbers)))
            if (room := room - width - 2) < 0:
                break
            columns[name] = width
        return columns

    def _steps(self, columns: Mapping[str, int]) -> Table:
        """Build the table of the latest steps that fit in the height. The last step is at the bottom."""
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right", no_wrap=True)
        for width in columns.values():
            table.add_column(justify="right", no_wrap=True, min_width=width)
        if not columns:
            return table
        table.add_row(*(Text(label, style="dim") for label in ("step", *(HEADLINES[name][0] for name in columns))))
        shown = list(self._latest)[-max(1, self._rich.height - _OTHER_LINES) :]
        for step, scalars in shown:
            numbers = [format(scalars[name], HEADLINES[name][1]) if name in scalars else "" for name in columns]
            style = "bold cyan" if step == self._step else "cyan"
            table.add_row(str(step), *(Text(number, style=style) for number in numbers))
        return table

    def _remaining(self) -> str:
        if not self._recent_s:
            return "-:-- left"
        seconds = (self._total_steps - self._step) * sum(self._recent_s) / len(self._recent_s)
        return f"{_clock(seconds)} left"

    def _grid(self, cells: Sequence[tuple[str, str]]) -> Table:
        """Build a grid of labels with their numbers, as many side by side as the width allows."""
        cells_per_row = max(1, self._rich.width // _CELL_WIDTH)
        grid = Table.grid(padding=(0, 1))
        for _ in range(cells_per_row):
            grid.add_column(width=_CELL_WIDTH - 1, no_wrap=True)
        for start in range(0, len(cells), cells_per_row):
            row = cells[start : start + cells_per_row]
            grid.add_row(*(Text.assemble((f"{label} ", "dim"), (number, "cyan")) for label, number in row))
        return grid


def _headlines(scalars: Mapping[str, float], names: Iterable[str] = HEADLINES) -> list[tuple[str, str]]:
    return [(HEADLINES[name][0], format(scalars[name], HEADLINES[name][1])) for name in names if name in scalars]


def _durations(scalars: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name.removeprefix(_SECONDS), f"{s:.1f}s") for name, s in scalars.items() if name.startswith(_SECONDS)]


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
