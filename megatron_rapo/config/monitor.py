"""The [monitor] section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_rapo import builtin_names
from megatron_rapo.config.section import MAX_SIZE, MAX_STEPS, OpenChoice, Section
from megatron_rapo.errors import shortened


def _how_often(steps: Any) -> Any:
    if steps == "auto" or (type(steps) is int and 0 <= steps <= MAX_STEPS):
        return steps
    raise ValueError(
        f"monitor.gradient_share_every_steps={shortened(str(steps))}: not a number of steps; set it to auto, to 0 for "
        f"never, or to a number up to {MAX_STEPS:,}."
    )


class MonitorConfig(Section):
    """Say what is recorded while a run goes on."""

    writers: tuple[Annotated[str, OpenChoice(builtin_names.WRITERS)], ...] = Field(
        default=("tensorboard",), strict=False
    )
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
