"""Compute every batch size of a step, in total and per process."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rapo.config import Config


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Batch sizes of one step. A sequence has `tokens_per_sequence` tokens: prompt and completion."""

    prompts: int
    completions: int
    completions_per_engine: int
    optimizer_steps: int
    sequences_per_optimizer_step: int
    sequences_per_data_rank: float
    microbatches_per_data_rank: int  # of an optimizer step
    tokens_per_sequence: float
    bubble: float  # share of training time that pipeline stages wait

    @property
    def tokens(self) -> float:
        """Return the number of tokens in all sequences of the step."""
        return self.completions * self.tokens_per_sequence


def batch(config: Config, *, world: int, tokens_per_sequence: float) -> Batch:
    """Return the batch sizes of a step on `world` processes."""
    sizes, layout = config.batch, config.parallel
    data_ranks = world // layout.model_size
    completions = sizes.prompts_per_step * sizes.completions_per_prompt
    of_rank = sizes.completions_per_optimizer_step / data_ranks
    microbatches = max(1, -int(-of_rank * tokens_per_sequence // sizes.tokens_per_microbatch))
    if layout.virtual_pipeline > 1:
        microbatches = -(-microbatches // layout.pipeline) * layout.pipeline
    waiting = (layout.pipeline - 1) / layout.virtual_pipeline
    return Batch(
        prompts=sizes.prompts_per_step,
        completions=completions,
        completions_per_engine=completions // (world // config.rollout.tensor),
        optimizer_steps=sizes.optimizer_steps_per_rollout,
        sequences_per_optimizer_step=sizes.completions_per_optimizer_step,
        sequences_per_data_rank=of_rank,
        microbatches_per_data_rank=microbatches,
        tokens_per_sequence=tokens_per_sequence,
        bubble=waiting / (microbatches + waiting),
    )
