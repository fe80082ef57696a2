"""Sections on the run as a whole: its length and place, what is kept and written of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_rapo import choices
from megatron_rapo.config.section import MAX_SECONDS, MAX_SIZE, MAX_STEPS, FilePath, OpenChoice, Section
from megatron_rapo.errors import shortened


class RunConfig(Section):
    """The run as a whole."""

    folder: FilePath
    """Where everything about the run is written."""
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Rollouts (each with batch.optimizer_steps_per_rollout optimizer steps)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the data order and of every sampled token."""
    deterministic: bool = False
    """Train on GPUs with kernels that give the same bits each time, slower; what has no such kernel is an error. On a
    CPU every run is the same."""
    timeout_s: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """How long a process waits for the others in a collective before it ends with an error, seconds."""


class CheckpointConfig(Section):
    """What is kept of a run."""

    every_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Steps between checkpoints; 0: none by steps."""
    every_minutes: float = Field(default=30.0, ge=0, le=MAX_SECONDS)
    """Minutes after which a step is saved if none was meanwhile; only the newest such checkpoint stays; 0: never."""
    async_save: bool = True
    """Write checkpoints from a copy in host memory while training goes on, which waits for the copy only."""
    keep_last: int = Field(default=0, ge=0, le=MAX_STEPS)
    """How many of the newest checkpoints are kept; 0 keeps all."""
    keep_every: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Checkpoints of every so many steps are kept besides them; 0: none."""
    grace_s: float = Field(default=25.0, gt=0, le=MAX_SECONDS)
    """How long a run goes on after SIGTERM or SIGUSR1, to finish and save, seconds (plain torchrun waits 30)."""
    hf_every: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Steps between Hugging Face folders of the policy, written during the run (RUN/exports/step-...); 0: none."""
    hf_export: bool = True
    """Write the trained policy as a Hugging Face folder when the run ends."""

    @model_validator(mode="after")
    def _check(self) -> CheckpointConfig:
        if self.keep_every and not self.keep_last:
            raise ValueError(
                f"checkpoint.keep_every={self.keep_every}: does nothing with checkpoint.keep_last=0, which keeps all; "
                "set keep_last, or leave keep_every out."
            )
        if self.keep_every and (not self.every_steps or self.keep_every % self.every_steps):
            raise ValueError(
                f"checkpoint.keep_every={self.keep_every}: not a multiple of checkpoint.every_steps="
                f"{self.every_steps}, so not all of those steps have a checkpoint; set a multiple of it."
            )
        return self


def _how_often(steps: Any) -> Any:
    if steps == "auto" or (type(steps) is int and 0 <= steps <= MAX_STEPS):
        return steps
    raise ValueError(
        f"monitor.gradient_share_every_steps={shortened(str(steps))}: not a number of steps; set it to auto, to 0 for "
        f"never, or to a number up to {MAX_STEPS:,}."
    )


class MonitorConfig(Section):
    """What is written down while a run goes on."""

    writers: tuple[Annotated[str, OpenChoice(choices.WRITERS)], ...] = Field(default=("tensorboard",), strict=False)
    """What the run is shown by, beside metrics.jsonl (docs/report.md): wandb and mlflow are to be installed; or classes
    of your own (docs/extending.md)."""
    gradient_share_every_steps: Annotated[Literal["auto"] | int, BeforeValidator(_how_often)] = "auto"
    """Steps between measurements of the penalty's share of the gradient, by six passes over a micro-batch; 0: never;
    auto: ten or more, so that measuring costs 5 % of the run at most by estimate (docs/profiling.md)."""
    sampled_completions: int = Field(default=3, ge=0, le=MAX_SIZE)
    """Completions that each of the writers is given as text at each step."""
    rollouts_every_steps: int = Field(default=10, ge=0, le=MAX_STEPS)
    """Steps between those whose completions are written, token by token, to RUN/rollouts/ (the first is); 0: none."""
    rollouts_completions: int = Field(default=16, ge=1, le=MAX_SIZE)
    """Completions written at each of those steps: the first four of each of the first prompts."""

    @model_validator(mode="after")
    def _check(self) -> MonitorConfig:
        if len(set(self.writers)) < len(self.writers):
            raise ValueError(f"monitor.writers={list(self.writers)}: one is named twice; name each once.")
        if not self.writers and self.sampled_completions and "sampled_completions" in self.model_fields_set:
            raise ValueError(
                f"monitor.sampled_completions={self.sampled_completions}: are given to monitor.writers, of which there "
                "are none; set one of the two otherwise."
            )
        if not self.rollouts_every_steps and "rollouts_completions" in self.model_fields_set:
            raise ValueError(
                f"monitor.rollouts_completions={self.rollouts_completions}: does nothing with "
                "monitor.rollouts_every_steps=0; set one of the two otherwise."
            )
        return self
