"""Compare log-probabilities of the same tokens from engine and trainer, and limit their difference.

The gap of a rollout is measured at every step, on different tokens each time. Here prompts and seeds stay the same, so
only the weights change from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_rapo.config import Config, PrecisionConfig
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.rollout import Sampling
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.scoring.objective import to_sequences
from megatron_rapo.types import Prompt

PROMPTS, COMPLETIONS, TOKENS = 8, 2, 64  # completions of each prompt; largest number of tokens of each


def logprob_parity(policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], config: Config) -> dict[str, float]:
    """Return |engine - trainer| log-probability of the engine's answers to the first `prompts`, in nats.

    With FP8, also return the parts of it. Names are those of monitor/scalars.py. Collective over the world. Changes
    nothing.
    """
    settings = config.rollout
    sampling = Sampling(
        temperature=settings.temperature, max_completion_tokens=min(TOKENS, settings.max_completion_tokens)
    )
    chosen = prompts[: max(PROMPTS, sampler.engine.num_replicas)]
    sampled = sampler.complete(chosen, COMPLETIONS, sampling, lambda i, j: sampling_seed(config.run.seed, -2, i, j))
    batches = policy.pack(to_sequences(sampler.judge(sampled), config))
    [scored] = policy.score_policy([batches])
    gap = policy.logprob_gap(scored)
    parity = {f"reshard/parity_{which}": gap[f"rollout/logprob_gap_{which}"] for which in ("mean", "max")}
    return parity | policy.gap_parts(scored)


class GapBudget:
    """Limits the mean difference of engine and trainer, in nats per token.

    The proof of a resharding shows that the engine has the weights. This shows that it also computes the same.
    """

    def __init__(self, settings: PrecisionConfig, warn: Callable[[str], None]) -> None:
        self._settings, self._warn, self._above = settings, warn, False

    def check(self, gap: float, *, step: int) -> None:
        """Check a mean |engine - trainer| log-probability after `step` steps.

        Above the limit, raises RuntimeError or warns, as on_logprob_gap says. Warns once, not at each step while the
        gap stays above the limit.
        """
        limit, was_above = self._settings.max_logprob_gap, self._above
        self._above = not gap <= limit  # nan is above
        if not self._above:
            return
        found = (
            f"precision.max_logprob_gap={limit}: engine and trainer differ by {gap:.4g} nats per token on average "
            f"after step {step}"
        )
        if self._settings.on_logprob_gap == "stop":
            raise RuntimeError(
                f"{found}, so the engine does not sample from this policy; if that is rounding (low precision; "
                "see reshard/parity_*), raise the limit or set precision.on_logprob_gap=warn."
            )
        if not was_above:
            self._warn(f"WARNING: {found}")
