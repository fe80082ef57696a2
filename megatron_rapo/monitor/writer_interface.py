"""The interface of writers, which send a run's numbers to other tools, and their common parts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from megatron_rapo.monitor.text import without_controls
from megatron_rapo.runtime.atomic_write import write_text_atomically

Scalars: TypeAlias = Mapping[str, float]
"""Values by name; scalars.py declares the names."""
Histograms: TypeAlias = Mapping[str, Sequence[float]]
"""Values of distributions by name; scalars.py declares the names."""

SAMPLE_WIDTH = 100
"""Longest line of a sample, characters. Viewers do not wrap lines of literal text."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion, for people to read."""

    prompt: str
    completion: str
    answer: str  # the problem's reference answer
    reward: float

    def markdown(self) -> str:
        """Return the sample as Markdown, with each part as literal text, so that the model's markup has no effect."""
        parts = {"prompt": self.prompt, "completion": self.completion, "answer": self.answer}
        blocks = [f"**reward {self.reward:g}**", *(f"**{name}**\n\n{_literal(text)}" for name, text in parts.items())]
        return "\n\n".join(blocks)


class Writer(Protocol):
    """Receives the numbers and samples of each step. Steps never go down."""

    def write(self, step: int, scalars: Scalars, samples: Sequence[Sample], histograms: Histograms) -> None:
        """Show the numbers and samples of `step`."""

    def close(self) -> None:
        """Finish. No more calls follow."""


def kept_id(path: Path, new: str) -> str:
    """Return the run id stored in the file `path`. Without one, store and return `new`.

    So a resumed run continues the same run in the other tool.
    """
    if not path.exists():
        write_text_atomically(path, new + "\n")
    return path.read_text().strip()


def _literal(text: str) -> str:
    """Return `text` as an indented, wrapped code block. Nothing in it is markup, and no line can end the block."""
    lines = without_controls(text, "\N{REPLACEMENT CHARACTER}").split("\n")
    return "\n".join("    " + part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, SAMPLE_WIDTH, expand_tabs=False, replace_whitespace=False, drop_whitespace=False) or [""]
