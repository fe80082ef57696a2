"""What else shows a run: TensorBoard, Weights & Biases, MLflow; one interface, each with a module of its own."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_rapo.errors import InputError
from megatron_rapo.monitor.text import without_controls
from megatron_rapo.writing import write_text_atomically

TENSORBOARD_FOLDER = "tensorboard"
SAMPLE_WIDTH = 100
"""Characters of a line of a sample: what shows it as literal text wraps no lines."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Of each writer: the package that it needs, by the name of its import."""


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


def check_writers(names: Sequence[str]) -> None:
    """Refuse one whose package is not installed. Raises InputError."""
    for name in names:
        spec = importlib.util.find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:  # a folder of that name, which wandb for one leaves, is no package
            raise InputError(
                f"monitor.writers={list(names)}: the package {PACKAGES[name]} is not installed; "
                f"pip install {PACKAGES[name]}, or leave {name} out."
            )


def open_writer(name: str, folder: Path, settings: Mapping[str, Any], *, first_step: int) -> Writer:
    """The writer `name` for the run in `folder` with those settings, whose next step is `first_step`."""
    if name == "tensorboard":  # 0.2 s of imports, only where it is wanted
        from megatron_rapo.monitor.events import EventFile

        return EventFile(folder / TENSORBOARD_FOLDER, first_step=first_step)
    if name == "wandb":
        from megatron_rapo.monitor.wandb_writer import WandbWriter

        return WandbWriter(folder, settings)
    from megatron_rapo.monitor.mlflow_writer import MlflowWriter

    return MlflowWriter(folder, settings)


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
