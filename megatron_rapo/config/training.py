"""Sections on how the objective is optimised: batch sizes, the optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_SIZE, MAX_STEPS, MAX_TOKENS, MAX_VALUE, Section


class BatchConfig(Section):
    """Batch sizes, each named by its unit."""

    prompts_per_step: int = Field(ge=1, le=MAX_STEPS)
    """Prompts sampled from the data set for one rollout, over all processes."""
    completions_per_prompt: int = Field(default=8, le=MAX_SIZE)
    """Completions of each prompt: the group within which advantages are relative."""
    optimizer_steps_per_rollout: int = Field(default=1, ge=1, le=MAX_STEPS)
    """Optimizer steps taken on one rollout, each on an equal share of its prompts."""
    refill_rounds: int = Field(default=0, ge=0, le=MAX_SIZE)
    """Most extra rounds of sampling per step that replace groups without signal (rewards all equal); 0 keeps them."""
    spare_prompts: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Prompts sampled beyond prompts_per_step, over all processes: a rollout ends when prompts_per_step groups are
    whole, and does not wait for the longest completions of the others (docs/rollout.md); 0: it waits for all."""
    max_carried_steps: int = Field(default=1, ge=0, le=MAX_STEPS)
    """Steps for which groups that a rollout did not wait for are carried on, with what there is of them, until one
    waits for them; 0: they are dropped, so that long completions are trained on less often."""
    old_logprobs_from_training: bool = False
    """With one optimizer step per rollout, take the old policy's log-probabilities from the training pass itself, which
    has the same weights, instead of from a scoring pass before it."""
    tokens_per_microbatch: int = Field(default=8192, ge=1, le=MAX_TOKENS)
    """Most tokens packed into one micro-batch of one data-parallel rank (which its context ranks share)."""
    share_prompts: bool = False
    """Pack one copy of a prompt for several of its completions: less to compute where prompts are not much shorter."""

    @model_validator(mode="after")
    def _check(self) -> BatchConfig:
        if self.completions_per_prompt < 2:
            raise ValueError(
                f"batch.completions_per_prompt={self.completions_per_prompt}: group-relative advantages need at "
                "least 2 completions of a prompt; set batch.completions_per_prompt >= 2."
            )
        if self.prompts_per_step % self.optimizer_steps_per_rollout:
            raise ValueError(
                f"batch.prompts_per_step={self.prompts_per_step}: not divisible by "
                f"batch.optimizer_steps_per_rollout={self.optimizer_steps_per_rollout}, so the optimizer steps would "
                f"differ in size; set it to a multiple of {self.optimizer_steps_per_rollout}."
            )
        if not self.spare_prompts and self.max_carried_steps != type(self).model_fields["max_carried_steps"].default:
            raise ValueError(
                f"batch.max_carried_steps={self.max_carried_steps}: does nothing with batch.spare_prompts=0, where a "
                "rollout waits for all; set one of the two otherwise."
            )
        if self.carries and self.spare_prompts > self.prompts_per_step:
            raise ValueError(
                f"batch.spare_prompts={self.spare_prompts}: so many groups may be carried on, and a step takes no more "
                f"than batch.prompts_per_step={self.prompts_per_step} of them; set at most that, or "
                "max_carried_steps=0."
            )
        if self.old_logprobs_from_training and self.optimizer_steps_per_rollout > 1:
            raise ValueError(
                "batch.old_logprobs_from_training=true: after the first of batch.optimizer_steps_per_rollout="
                f"{self.optimizer_steps_per_rollout} optimizer steps the weights are no longer those of the old "
                "policy; set one of the two otherwise."
            )
        return self

    @property
    def carries(self) -> bool:
        """Return whether a step may train on tokens that were sampled from earlier weights."""
        return self.spare_prompts > 0 and self.max_carried_steps > 0

    @property
    def prompts_per_optimizer_step(self) -> int:
        """Groups whose completions one optimizer step trains on, over all processes."""
        return self.prompts_per_step // self.optimizer_steps_per_rollout

    @property
    def completions_per_optimizer_step(self) -> int:
        """Sequences one optimizer step trains on, over all processes."""
        return self.prompts_per_optimizer_step * self.completions_per_prompt


class OptimizerConfig(Section):
    """Megatron's AdamW and its learning-rate schedule; a step is an optimizer step."""

    lr: float = Field(default=5e-7, gt=0, le=10)
    """Learning rate at the end of the warm-up, or of the first step without one; the schedule falls from it."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate of the last optimizer step under a linear or cosine schedule; at 0 that step changes nothing."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate from lr, after the warm-up, to min_lr."""
    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Linear warm-up, optimizer steps: step n of it is taken at n / warmup_steps of lr."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first-moment decay."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's second-moment decay."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    """Adam's denominator offset."""
    clip_grad_norm: float = Field(default=1.0, gt=0, le=MAX_VALUE)
    """Global gradient norm above which gradients are scaled down."""
    max_skipped_steps: int = Field(default=3, ge=0, le=MAX_STEPS)
    """Optimizer steps in a row that may be skipped, their loss or gradient not being finite; one more ends the run."""
    distributed: bool = False
    """Shard the optimizer's state over data-parallel ranks."""

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
