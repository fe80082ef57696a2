"""Compute rewards from verdicts: the terms, the user's own functions, their sum. No torch."""

from megatron_rapo.rewards.terms import Rewards, reward_of

__all__ = ["Rewards", "reward_of"]
