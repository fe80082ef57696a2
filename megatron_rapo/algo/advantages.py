"""Group-relative advantages: how much better a completion is than its group. P prompts, G completions of each.

Everything is computed in float64, from rewards that are centred first. A group whose rewards differ by rounding only
has no signal (`deviations`): its advantages are exactly 0, by every kind. Its tokens stay in the loss, where the
divergence and the entropy still act on them; `batch.refill_rounds` replaces such groups before they get there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_rapo import choices

STD_OFFSET = 1e-6  # added to a group's standard deviation
NO_DIFFERENCE = 1e-6
"""How far from its group's mean a reward counts as the mean, as a share of the group's largest |reward|, or of 1 where
that is less. Rewards computed in float32 are rounded by 6e-8 of themselves; what is meant to differ differs by more."""


def mean_std(deviations_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-6), std with divisor n - 1 as in TRL and verl. Source: GRPO, arXiv 2402.03300."""
    squares_P1 = deviations_PG.masked_fill(~baseline_PG, 0.0).square().sum(dim=-1, keepdim=True)
    std_P1 = (squares_P1 / (_count(baseline_PG) - 1).clamp(min=1)).sqrt()
    return deviations_PG / (std_P1 + STD_OFFSET)


def mean(deviations_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """r - mean: groups that are nearly always or nearly never solved weigh no more than others.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2.
    """
    return deviations_PG


def leave_one_out(deviations_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """r - mean of the others = n / (n - 1) * (r - mean): a baseline that does not depend on the completion itself.

    Source: RLOO, arXiv 2402.14740, section 2.3.
    """
    count_P1 = _count(baseline_PG)
    return deviations_PG * (count_P1 / (count_P1 - 1).clamp(min=1))


Advantage = Callable[[Tensor, Tensor], Tensor]
"""Function of (deviations_PG, baseline_PG), where n completions of a group are of its baseline."""
ADVANTAGES: dict[str, Advantage] = {f.__name__: f for f in (mean_std, mean, leave_one_out)}
assert tuple(ADVANTAGES) == choices.ADVANTAGES, "megatron_rapo/choices.py lists other advantages"


def group_advantages(
    rewards_PG: Tensor,
    kind: str | Advantage,
    trained_PG: Tensor | None = None,
    baseline_PG: Tensor | None = None,
) -> Tensor:
    """Return the advantages [P, G], float64, of `kind` (a name in ADVANTAGES, or a function like those).

    trained_PG: bool, the completions that the loss counts; the others have 0. None: all. baseline_PG: bool, those whose
    rewards make the group's mean and deviation, the trained ones among them. None: these alone.
    """
    trained_PG, baseline_PG = _masks(rewards_PG, trained_PG, baseline_PG)
    deviations_PG, signal_P = deviations(rewards_PG, trained_PG, baseline_PG)
    advantage = ADVANTAGES[kind] if isinstance(kind, str) else kind
    return advantage(deviations_PG, baseline_PG).masked_fill(~(trained_PG & signal_P[:, None]), 0.0)


def have_signal(rewards_PG: Tensor, trained_PG: Tensor | None = None, baseline_PG: Tensor | None = None) -> Tensor:
    """Return which groups have an advantage other than 0, [P] bool. Masks as in `group_advantages`."""
    return deviations(rewards_PG, *_masks(rewards_PG, trained_PG, baseline_PG))[1]


def deviations(rewards_PG: Tensor, trained_PG: Tensor, baseline_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Return r - mean [P, G], float64, and which groups have signal [P].

    The mean is that of the baseline. A group has signal where the reward of one that is trained on is farther from it
    than rounding (NO_DIFFERENCE); so one with fewer than two completions in its baseline has none.
    """
    rewards_PG = rewards_PG.double()
    first_P1 = rewards_PG.gather(-1, baseline_PG.int().argmax(dim=-1, keepdim=True))
    from_first_PG = rewards_PG - first_P1  # small numbers, whose mean is exact where the rewards are equal
    total_P1 = from_first_PG.masked_fill(~baseline_PG, 0.0).sum(dim=-1, keepdim=True)
    deviations_PG = from_first_PG - total_P1 / _count(baseline_PG).clamp(min=1)
    size_P1 = rewards_PG.abs().masked_fill(~baseline_PG, 0.0).amax(dim=-1, keepdim=True).clamp(min=1.0)
    differs_PG = deviations_PG.abs() > NO_DIFFERENCE * size_P1
    return deviations_PG, (differs_PG & trained_PG).any(dim=-1)


def _count(baseline_PG: Tensor) -> Tensor:
    return baseline_PG.sum(dim=-1, keepdim=True, dtype=torch.float64)  # the ratio of whole ones would be float32


def _masks(rewards_PG: Tensor, trained_PG: Tensor | None, baseline_PG: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both masks, with their defaults."""
    trained_PG = rewards_PG.new_ones(rewards_PG.shape, dtype=torch.bool) if trained_PG is None else trained_PG
    return trained_PG, trained_PG if baseline_PG is None else baseline_PG
