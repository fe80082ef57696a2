"""Compute the reward of a completion as a sum of named terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_rapo.rewards.user_functions import RewardFunction, load_functions
from megatron_rapo.types import Completion, Outcome, Problem, Verdict

if TYPE_CHECKING:  # the verifier processes do not import pydantic
    from megatron_rapo.config import LengthConfig, RewardConfig

Terms = dict[str, float]


@dataclass(frozen=True)
class Rewards:
    """Computes reward terms as the section [reward] configures them."""

    config: RewardConfig
    functions: tuple[RewardFunction, ...] = ()

    @classmethod
    def load(cls, config: RewardConfig) -> Rewards:
        """Load the user's reward functions. Raises UserCodeError if one cannot be used."""
        return cls(config, load_functions(config.functions))

    def terms(self, problem: Problem, completion: Completion, verdict: Verdict) -> Terms:
        """Return the reward terms of `completion` by name: correctness, format, length (if penalised), user functions.

        Raises the errors of `RewardFunction`.
        """
        terms = verdict_terms(verdict, self.config)
        if self.config.length:
            terms["length"] = length_term(len(completion.token_ids), self.config.length)
        return terms | {each.settings.name: each(problem, completion, verdict) for each in self.functions}


def verdict_terms(verdict: Verdict, config: RewardConfig) -> Terms:
    """Return the terms `correctness` and `format`, of which at most one is not 0.

    An answer in the required form earns `config.correct` or `.wrong` as correctness, any other completion
    `.unformatted` as format. Only CORRECT earns `.correct`, and UNEVALUATED if `config.unevaluated` says so.
    """
    if not verdict.formatted:
        return {"correctness": 0.0, "format": config.unformatted}
    right = verdict.outcome is Outcome.CORRECT or (
        verdict.outcome is Outcome.UNEVALUATED and config.unevaluated == "correct"
    )
    return {"correctness": config.correct if right else config.wrong, "format": 0.0}


def length_term(num_tokens: int, config: LengthConfig) -> float:
    """Return minus the length penalty of a completion with `num_tokens` tokens."""
    share = (num_tokens - config.free_tokens) / (config.full_tokens - config.free_tokens)
    return -config.penalty * min(1.0, max(0.0, share))


def reward_of(terms: Mapping[str, float]) -> float:
    """Return the sum of the terms, rounded once, so that it stays exactly within the range of the rewards."""
    return math.fsum(terms.values())


def by_name(terms: Sequence[Terms]) -> dict[str, tuple[float, ...]]:
    """Collect the values of each reward term over several completions."""
    return {name: tuple(each[name] for each in terms) for name in terms[0]}
