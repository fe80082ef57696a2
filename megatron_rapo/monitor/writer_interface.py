"""The interface of writers, which show a run elsewhere, and what they have in common."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_rapo.monitor.text import without_controls
from megatron_rapo.runtime.atomic_write import write_text_atomically

SAMPLE_WIDTH = 100
"""Characters of a line of a sample: what shows it as literal text wraps no lines."""


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


class Writer(Protocol):
    """Takes what a step has; steps only go up."""

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        samples: Sequence[Sample],
        histograms: Mapping[str, Sequence[float]],
    ) -> None:
        """Show `scalars`, `samples` and the distributions of `histograms`' values (names of scalars.py) at `step`."""

    def close(self) -> None:
        """Nothing comes any more."""


def kept_id(path: Path, new: str) -> str:
    """What the file `path` says, or else `new`, from now on: a run that is resumed is the same one there too."""
    if not path.exists():
        write_text_atomically(path, new + "\n")
    return path.read_text().strip()


def _literal(text: str) -> str:
    """Return `text` as an indented code block, wrapped: nothing in it is markup, and no line of it can end it."""
    lines = without_controls(text, "\N{REPLACEMENT CHARACTER}").split("\n")
    return "\n".join("    " + part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, SAMPLE_WIDTH, expand_tabs=False, replace_whitespace=False, drop_whitespace=False) or [""]
