"""Sections on the run as a whole: its length and place, what is kept and written of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_rapo import choices
from megatron_rapo.config.section import MAX_SECONDS, MAX_SIZE, MAX_STEPS, FilePath, OpenChoice, Section
from megatron_rapo.errors import shortened


class RunConfig(Section):
    """Say where the run is written, how long it is and how it is seeded."""

    folder: FilePath
    """Write everything about the run into this folder."""
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Train for this many steps. Each is one rollout with batch.optimizer_steps_per_rollout optimizer steps.

    Unit: steps.
    """
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed the data order and every sampled token.

    Unit: none.
    """
    deterministic: bool = False
    """Train on GPUs with kernels that give the same bits each time. They are slower, and an operation without such a
    kernel is an error. On a CPU every run is deterministic."""
    timeout_s: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """End a process with an error when it has waited this long for the others in a collective.

    Unit: seconds.
    Limits: above reward.budget_s.
    """


class CheckpointConfig(Section):
    """Say when checkpoints and Hugging Face folders are written, and which are kept."""

    every_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Save a checkpoint after every so many steps. 0: no checkpoints by steps.

    Unit: steps.
    Limits: not above run.steps.
    """
    every_minutes: float = Field(default=30.0, ge=0, le=MAX_SECONDS)
    """Save a checkpoint when no step was saved for this long. Only the newest of these checkpoints is kept. 0: never.

    Unit: minutes.
    """
    async_save: bool = True
    """Write checkpoints from a copy in host memory while training goes on. Training waits only for the copy.

    Also called: asynchronous checkpointing.
    """
    keep_last: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Keep this many of the newest checkpoints. 0: keep all.

    Unit: checkpoints.
    """
    keep_every: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Keep the checkpoints of every so many steps besides the newest ones. 0: none.

    Unit: steps.
    Limits: a multiple of checkpoint.every_steps.
    Needs: checkpoint.keep_last above 0.
    """
    grace_s: float = Field(default=25.0, gt=0, le=MAX_SECONDS)
    """Finish the step and save within this time after SIGTERM or SIGUSR1. Plain torchrun waits for 30 seconds.

    Unit: seconds.
    """
    hf_every: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Write the policy as a Hugging Face folder (RUN/exports/step-...) after every so many steps. 0: none during the
    run.

    Unit: steps.
    Limits: not above run.steps.
    """
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
    """Say what is recorded while a run goes on."""

    writers: tuple[Annotated[str, OpenChoice(choices.WRITERS)], ...] = Field(default=("tensorboard",), strict=False)
    """Show the run in these tools, besides metrics.jsonl (docs/report.md), or with classes of your own
    (docs/extending.md).

    Limits: each at most once.
    Needs: the package wandb or mlflow for the writer of that name.
    Also called: logger, report_to, Weights & Biases.
    """
    gradient_share_every_steps: Annotated[Literal["auto"] | int, BeforeValidator(_how_often)] = "auto"
    """Measure the penalty's share of the gradient every so many steps, with six passes over a micro-batch. 0: never.
    auto: every ten steps or more, so that it costs an estimated 5 % of the run at most (docs/profiling.md).

    Unit: steps.
    Limits: auto, or 0 to 1,000,000,000.
    """
    sampled_completions: int = Field(default=3, ge=0, le=MAX_SIZE)
    """Give this many completions as text to each writer at each step.

    Unit: completions.
    Needs: a writer in monitor.writers if set above 0.
    """
    rollouts_every_steps: int = Field(default=10, ge=0, le=MAX_STEPS)
    """Write completions token by token to RUN/rollouts/ every so many steps, the first step included. 0: never.

    Unit: steps.
    """
    rollouts_completions: int = Field(default=16, ge=1, le=MAX_SIZE)
    """Write this many completions at each of those steps: the first four of each of the first prompts.

    Unit: completions.
    Needs: monitor.rollouts_every_steps above 0.
    """

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
