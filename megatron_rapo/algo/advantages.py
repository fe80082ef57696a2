"""Group-relative advantages: how much better a completion is than its group. P prompts, G completions of each.

A group whose rewards are all equal has advantage exactly 0, by every kind: it says nothing about which completion is
better. Its tokens stay in the loss, where the divergence and the entropy still act on them; `batch.refill_rounds`
replaces such groups before they get there.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

STD_OFFSET = 1e-6  # added to a group's standard deviation


def mean_std(rewards_PG: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-6), std with divisor G - 1 as in TRL and verl. Source: GRPO, arXiv 2402.03300."""
    return mean(rewards_PG) / (rewards_PG.std(dim=-1, keepdim=True) + STD_OFFSET)


def mean(rewards_PG: Tensor) -> Tensor:
    """r - mean: groups that are nearly always or nearly never solved weigh no more than others.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2.
    """
    return rewards_PG - rewards_PG.mean(dim=-1, keepdim=True)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """r - mean of the others = G / (G - 1) * (r - mean): a baseline that does not depend on the completion itself.

    Source: RLOO, arXiv 2402.14740, section 2.3.
    """
    group = rewards_PG.shape[-1]
    return mean(rewards_PG) * (group / (group - 1))


ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {f.__name__: f for f in (mean_std, mean, leave_one_out)}


def group_advantages(rewards_PG: Tensor, kind: str) -> Tensor:
    """Advantages [P, G] of `kind` (a name in ADVANTAGES), exactly 0 in groups whose rewards are all equal. G >= 2."""
    # The mean of equal rewards may be off by a rounding error, which division by a tiny std would blow up.
    equal_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=-1, keepdim=True)
    return ADVANTAGES[kind](rewards_PG).masked_fill(equal_P1, 0.0)
