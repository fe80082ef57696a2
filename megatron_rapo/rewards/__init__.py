"""Compute rewards: terms from verdicts, terms from the user's own functions, and their sum. No torch."""

from megatron_rapo.rewards.terms import Rewards, reward_of

__all__ = ["Rewards", "reward_of"]
