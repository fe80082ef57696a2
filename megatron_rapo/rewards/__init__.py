"""Verifiable rewards: what an answer is, whether it is right, what that is worth. No torch."""

from megatron_rapo.rewards.boxed import last_boxed
from megatron_rapo.rewards.pool import VerifierPool
from megatron_rapo.rewards.reward import reward_of
from megatron_rapo.rewards.verify import judge

__all__ = ["VerifierPool", "judge", "last_boxed", "reward_of"]
