"""Group-relative advantages. P prompts, G completions of each."""

from __future__ import annotations

from torch import Tensor


def group_advantages(rewards_PG: Tensor, *, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) within each group, [P, G].

    std is the sample standard deviation (divisor G - 1), as TRL and verl take it. A group whose rewards are all
    equal has advantage exactly 0: it says nothing about which completion is better. Source: GRPO,
    arXiv 2402.03300, section 4.1.2.
    """
    centred_PG = rewards_PG - rewards_PG.mean(dim=-1, keepdim=True)
    scaled_PG = centred_PG / (rewards_PG.std(dim=-1, keepdim=True) + eps)
    # The mean of equal rewards may be off by a rounding error, which division by eps would blow up.
    equal_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=-1, keepdim=True)
    return scaled_PG.masked_fill(equal_P1, 0.0)
