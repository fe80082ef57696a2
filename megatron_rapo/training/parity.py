"""Engine against trainer: log-probabilities of the same tokens from both, and how far they may differ.

A rollout's gap is measured at every step, on other tokens each time. Here prompts and seeds stay the same, so that what
changes from one measurement to the next is the weights and what was done to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_rapo.config import Config, PrecisionConfig
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.rollout import Sampling
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.scoring.objective import to_sequences
from megatron_rapo.types import Prompt

PROMPTS, COMPLETIONS, TOKENS = 8, 2, 64  # of each prompt; of a completion, at most


def logprob_parity(policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], config: Config) -> dict[str, float]:
    """|engine - trainer| log-probability of the tokens that the engine answers the first `prompts` with, nats.

    And what that is made of, where either is in FP8. By the names of monitor/scalars.py. Collective over the world;
    changes nothing.
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
    """How far engine and trainer may differ, in nats per token on average, and what is done where they do.

    The proof of a resharding says whether the engine has the weights; this, whether it computes with them what the
    trainer does.
    """

    def __init__(self, settings: PrecisionConfig, warn: Callable[[str], None]) -> None:
        self._settings, self._warn, self._above = settings, warn, False

    def check(self, gap: float, *, step: int) -> None:
        """Of a mean |engine - trainer| log-probability after `step` steps.

        Raises RuntimeError where that stops the run. A warning is said where the gap comes to be above the limit, not
        at each step that it stays there.
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
                "reshard/parity_* says of what), raise the limit or set precision.on_logprob_gap=warn."
            )
        if not was_above:
            self._warn(f"WARNING: {found}")
