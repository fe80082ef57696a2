"""Verifiable rewards: what an answer is, whether it is right, what that is worth. No torch."""

from megatron_rapo.rewards.answers import MAX_READ_CHARS, Extract, extractor
from megatron_rapo.rewards.boxed import final_answer, last_boxed
from megatron_rapo.rewards.judging import Judging
from megatron_rapo.rewards.pool import VerifierPool
from megatron_rapo.rewards.reward import Rewards, reward_of
from megatron_rapo.rewards.verify import judge

__all__ = [
    "MAX_READ_CHARS",
    "Extract",
    "Judging",
    "Rewards",
    "VerifierPool",
    "extractor",
    "final_answer",
    "judge",
    "last_boxed",
    "reward_of",
]
