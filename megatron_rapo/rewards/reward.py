"""From a verdict to a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_rapo.types import Outcome, Verdict

if TYPE_CHECKING:  # pydantic has no place in the verifier processes
    from megatron_rapo.config import RewardConfig


def reward_of(verdict: Verdict, config: RewardConfig) -> float:
    """`config.correct`, `config.unformatted` (no closed box) or `config.wrong` (all else)."""
    if verdict.outcome is Outcome.CORRECT:
        return config.correct
    return config.wrong if verdict.formatted else config.unformatted
