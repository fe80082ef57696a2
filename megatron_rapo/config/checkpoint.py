"""The [checkpoint] section."""

from __future__ import annotations

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_SECONDS, MAX_STEPS, Section


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
