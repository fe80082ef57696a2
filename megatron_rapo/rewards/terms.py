"""Compute the reward of completions: named terms, and their sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_rapo.rewards.user_functions import RewardFunction, load_functions
from megatron_rapo.types import Completion, Outcome, Problem, Verdict

if TYPE_CHECKING:  # pydantic has no place in the verifier processes
    from megatron_rapo.config import LengthConfig, RewardConfig

Terms = dict[str, float]


@dataclass(frozen=True)
class Rewards:
    """Rewards as configured in the section [reward]."""

    config: RewardConfig
    functions: tuple[RewardFunction, ...] = ()

    @classmethod
    def load(cls, config: RewardConfig) -> Rewards:
        """With the user's functions. Raises UserCodeError for one that cannot be used."""
        return cls(config, load_functions(config.functions))

    def terms(self, problem: Problem, completion: Completion, verdict: Verdict) -> Terms:
        """Return the reward terms of `completion` by name: correctness, format, length (if penalised), user functions.

        Raises as a RewardFunction does.
        """
        terms = verdict_terms(verdict, self.config)
        if self.config.length:
            terms["length"] = length_term(len(completion.token_ids), self.config.length)
        return terms | {each.settings.name: each(problem, completion, verdict) for each in self.functions}


def verdict_terms(verdict: Verdict, config: RewardConfig) -> Terms:
    """Return `correctness` (`config.correct` or `.wrong`) for a closed box, else `format` (`.unformatted`).

    All outcomes but CORRECT earn `.wrong`; `config.unevaluated` says what UNEVALUATED earns.
    """
    if not verdict.formatted:
        return {"correctness": 0.0, "format": config.unformatted}
    right = verdict.outcome is Outcome.CORRECT or (
        verdict.outcome is Outcome.UNEVALUATED and config.unevaluated == "correct"
    )
    return {"correctness": config.correct if right else config.wrong, "format": 0.0}


def length_term(num_tokens: int, config: LengthConfig) -> float:
    """Return the negative length penalty for a completion of `num_tokens`."""
    share = (num_tokens - config.free_tokens) / (config.full_tokens - config.free_tokens)
    return -config.penalty * min(1.0, max(0.0, share))


def reward_of(terms: Mapping[str, float]) -> float:
    """Their sum, rounded once: so it is within the range of the rewards to the last bit."""
    return math.fsum(terms.values())


def by_name(terms: Sequence[Terms]) -> dict[str, tuple[float, ...]]:
    """Collect the values of each reward term over several completions."""
    return {name: tuple(each[name] for each in terms) for name in terms[0]}
