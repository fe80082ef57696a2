"""The [batch] section."""

from __future__ import annotations

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_SIZE, MAX_STEPS, MAX_TOKENS, Section


class BatchConfig(Section):
    """Set batch sizes, dynamic sampling, over-sampling and partial rollouts."""

    prompts_per_step: int = Field(ge=1, le=MAX_STEPS)
    """Sample this many prompts for one rollout, over all processes.

    Unit: prompts.
    Limits: a multiple of batch.optimizer_steps_per_rollout, and of the number of engines.
    Also called: train batch size, rollout batch size.
    """
    completions_per_prompt: int = Field(default=8, le=MAX_SIZE)
    """Sample this many completions of each prompt. They form the group within which advantages are relative.

    Unit: completions.
    Limits: at least 2.
    Also called: group size, G, num_generations.
    """
    optimizer_steps_per_rollout: int = Field(default=1, ge=1, le=MAX_STEPS)
    """Take this many optimizer steps on one rollout, each on an equal share of its prompts.

    Unit: optimizer steps.
    Limits: must divide batch.prompts_per_step.
    Also called: mini-batches, off-policy steps.
    """
    dynamic_sampling_rounds: int = Field(default=0, ge=0, le=MAX_SIZE)
    """Replace groups without signal (all rewards equal) by sampling new prompts, in at most this many extra rounds per
    step. 0 keeps those groups.

    Unit: rounds.
    Also called: dynamic sampling (DAPO), filter zero-advantage groups.
    """
    oversampled_prompts: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Sample this many prompts beyond batch.prompts_per_step, over all processes. The rollout ends as soon as
    prompts_per_step groups are complete and does not wait for the longest completions of the others (docs/rollout.md).
    0: wait for all groups.

    Unit: prompts.
    Limits: a multiple of the number of engines; not above batch.prompts_per_step unless batch.partial_rollout_steps=0.
    Also called: over-sampling, partial rollouts, long tail.
    """
    partial_rollout_steps: int = Field(default=1, ge=0, le=MAX_STEPS)
    """Carry unfinished groups into at most this many later steps, with the tokens that they have, and then wait for
    them. 0: drop them, so that training sees long completions less often.

    Unit: steps.
    Needs: batch.oversampled_prompts above 0.
    Also called: partial rollouts, staleness.
    """
    old_logprobs_from_training: bool = False
    """Take the old policy's log-probabilities from the training pass, which has the same weights, and save the scoring
    pass before it.

    Needs: batch.optimizer_steps_per_rollout=1.
    """
    tokens_per_microbatch: int = Field(default=8192, ge=1, le=MAX_TOKENS)
    """Pack at most this many tokens into one micro-batch of one data-parallel rank. Its context-parallel ranks share
    them.

    Unit: tokens.
    Limits: at least data.max_prompt_tokens plus rollout.max_completion_tokens.
    Also called: sequence packing, max tokens per GPU.
    """
    share_prompts: bool = False
    """Pack one copy of a prompt for several of its completions. This saves compute where prompts are not much shorter
    than completions.

    Excludes: parallel.context above 1; model.layers=transformer_engine.
    Also called: prefix sharing, shared prompts.
    """

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
        if (
            not self.oversampled_prompts
            and self.partial_rollout_steps != type(self).model_fields["partial_rollout_steps"].default
        ):
            raise ValueError(
                f"batch.partial_rollout_steps={self.partial_rollout_steps}: does nothing with "
                "batch.oversampled_prompts=0, where a rollout waits for all groups; change one of the two."
            )
        if self.partial_rollouts and self.oversampled_prompts > self.prompts_per_step:
            raise ValueError(
                f"batch.oversampled_prompts={self.oversampled_prompts}: a step takes at most "
                f"batch.prompts_per_step={self.prompts_per_step} groups that were carried on; set at most that, or "
                "partial_rollout_steps=0."
            )
        if self.old_logprobs_from_training and self.optimizer_steps_per_rollout > 1:
            raise ValueError(
                "batch.old_logprobs_from_training=true: after the first of batch.optimizer_steps_per_rollout="
                f"{self.optimizer_steps_per_rollout} optimizer steps the weights are no longer those of the old "
                "policy; set one of the two otherwise."
            )
        return self

    @property
    def partial_rollouts(self) -> bool:
        """Return whether a step may train on tokens that were sampled from earlier weights."""
        return self.oversampled_prompts > 0 and self.partial_rollout_steps > 0

    @property
    def prompts_per_optimizer_step(self) -> int:
        """Return how many groups one optimizer step trains on, over all processes."""
        return self.prompts_per_step // self.optimizer_steps_per_rollout

    @property
    def completions_per_optimizer_step(self) -> int:
        """Return how many sequences one optimizer step trains on, over all processes."""
        return self.prompts_per_optimizer_step * self.completions_per_prompt
