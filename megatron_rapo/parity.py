"""Engine against trainer: log-probabilities of the same tokens from both, and how far they may differ.

A rollout's gap is measured at every step, on other tokens each time. Here prompts and seeds stay the same, so that what
changes from one measurement to the next is the weights and what was done to them.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_rapo.config import Config, ReshardConfig
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.objective import to_sequences
from megatron_rapo.rollout import Sampling
from megatron_rapo.sampling import Sampler, sampling_seed
from megatron_rapo.types import Prompt

PROMPTS, COMPLETIONS, TOKENS = 8, 2, 64  # of each prompt; of a completion, at most


def logprob_parity(policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], config: Config) -> dict[str, float]:
    """|engine - trainer| log-probability of the tokens that the engine answers the first `prompts` with, nats.

    By the names of monitor/scalars.py. Collective over the world; changes nothing.
    """
    settings = config.rollout
    sampling = Sampling(
        temperature=settings.temperature, max_completion_tokens=min(TOKENS, settings.max_completion_tokens)
    )
    chosen = prompts[: max(PROMPTS, sampler.engine.num_replicas)]
    completions = sampler.complete(chosen, COMPLETIONS, sampling, lambda i, j: sampling_seed(config.run.seed, -2, i, j))
    batches = policy.pack(to_sequences(sampler.judge(chosen, completions), config))
    [scored] = policy.score([batches])
    gap = policy.diagnostics(scored)
    return {f"reshard/parity_{which}": gap[f"rollout/logprob_gap_{which}"] for which in ("mean", "max")}


def refuse_gap(gap: float, settings: ReshardConfig, *, step: int) -> None:
    """Stop where the engine plainly samples from another policy than the trainer's (a proof it is not).

    `gap` is a mean |engine - trainer| log-probability after `step` steps, nats. Raises RuntimeError.
    """
    limit = settings.max_logprob_gap
    if not gap <= limit:
        raise RuntimeError(
            f"reshard.max_logprob_gap={limit}: engine and trainer differ by {gap:.4g} nats per token on average "
            f"after step {step}, so the engine does not sample from this policy; if that is rounding "
            "(low precision), raise the limit."
        )
