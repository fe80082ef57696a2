"""The [optimizer] section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_STEPS, MAX_VALUE, Section


class OptimizerConfig(Section):
    """Set up AdamW and its learning-rate schedule. Steps here are optimizer steps."""

    lr: float = Field(default=5e-7, gt=0, le=10)
    """Use this learning rate at the end of the warm-up, or from the first step without one. The schedule falls from it.

    Unit: none.
    """
    min_lr: float = Field(default=0.0, ge=0)
    """Let a linear or cosine schedule end at this learning rate. At 0 the last optimizer step changes nothing.

    Unit: none.
    Limits: not above optimizer.lr.
    Needs: optimizer.schedule=linear or cosine if above 0.
    """
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Choose how the learning rate goes from lr, after the warm-up, to min_lr.

    Needs: optimizer.warmup_steps below the run's optimizer steps for linear and cosine.
    """
    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Raise the learning rate linearly during this many optimizer steps. Step n of them uses n / warmup_steps of
    optimizer.lr.

    Unit: optimizer steps.
    Limits: not above run.steps times batch.optimizer_steps_per_rollout.
    """
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """Apply this decoupled weight decay (AdamW).

    Unit: none.
    """
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Set the decay of Adam's first moment.

    Unit: none.
    """
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Set the decay of Adam's second moment.

    Unit: none.
    """
    eps: float = Field(default=1e-8, gt=0, le=1)
    """Add this to the denominator of Adam's update.

    Unit: none.
    """
    clip_grad_norm: float = Field(default=1.0, gt=0, le=MAX_VALUE)
    """Scale the gradient down where its global norm is above this value.

    Unit: gradient norm.
    Also called: gradient clipping, max_grad_norm.
    """
    max_skipped_steps: int = Field(default=3, ge=0, le=MAX_STEPS)
    """Skip at most this many optimizer steps in a row whose loss or gradient is not finite. One more ends the run.

    Unit: optimizer steps.
    """
    distributed: bool = False
    """Shard the optimizer's state over data-parallel ranks.

    Needs: at least two data-parallel or context-parallel ranks.
    Also called: ZeRO-1, distributed optimizer.
    """

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.min_lr > self.lr:
            raise ValueError(
                f"optimizer.min_lr={self.min_lr}: above optimizer.lr={self.lr}; set optimizer.min_lr <= optimizer.lr."
            )
        if self.schedule == "constant" and self.min_lr > 0:
            raise ValueError(
                f"optimizer.min_lr={self.min_lr}: does nothing with optimizer.schedule=constant; "
                "set optimizer.min_lr=0.0 or schedule=linear or cosine."
            )
        return self
