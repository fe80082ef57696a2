"""Compute group-relative advantages: how much better a completion is than its group. P prompts, G completions of each.

All arithmetic is in float64, on rewards with their mean subtracted. A group whose rewards differ only by rounding has
no signal (`deviations`): every kind gives it advantages of exactly 0. Its tokens stay in the loss, where divergence and
entropy act on them, unless `batch.dynamic_sampling_rounds` replaces the group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_rapo import builtin_names

STD_OFFSET = 1e-6  # added to a group's standard deviation
NO_DIFFERENCE = 1e-6
"""A reward this close to its group's mean counts as the mean. Relative to max(1, the group's largest |reward|).

float32 rounds rewards by 6e-8 of their size. Rewards that are meant to differ do so by more."""


def mean_std(deviations_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """Return (r - mean) / (std + 1e-6). std has divisor n - 1, as in TRL and verl. Source: GRPO, arXiv 2402.03300."""
    squares_P1 = deviations_PG.masked_fill(~baseline_PG, 0.0).square().sum(dim=-1, keepdim=True)
    std_P1 = (squares_P1 / (_count(baseline_PG) - 1).clamp(min=1)).sqrt()
    return deviations_PG / (std_P1 + STD_OFFSET)


def mean(deviations_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """Return r - mean. So problems that are nearly always or never solved weigh no more than others.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2.
    """
    return deviations_PG


def leave_one_out(deviations_PG: Tensor, baseline_PG: Tensor) -> Tensor:
    """Return r - mean of the others = n / (n - 1) * (r - mean). This baseline does not depend on the completion itself.

    Source: RLOO, arXiv 2402.14740, section 2.3.
    """
    count_P1 = _count(baseline_PG)
    return deviations_PG * (count_P1 / (count_P1 - 1).clamp(min=1))


Advantage = Callable[[Tensor, Tensor], Tensor]
"""Function of (deviations_PG, baseline_PG). n completions of a group are in its baseline."""
ADVANTAGES: dict[str, Advantage] = {f.__name__: f for f in (mean_std, mean, leave_one_out)}
assert tuple(ADVANTAGES) == builtin_names.ADVANTAGES, "megatron_rapo/builtin_names.py lists other advantages"


def group_advantages(
    rewards_PG: Tensor, kind: str | Advantage, trained_PG: Tensor | None = None, baseline_PG: Tensor | None = None
) -> Tensor:
    """Return the advantages [P, G], float64, of `kind` (a name in ADVANTAGES, or a function like those).

    trained_PG (bool; default: all) selects the completions that the loss counts. Others get 0. baseline_PG (bool;
    default: trained_PG) selects those whose rewards give the group's mean and deviation. It includes the trained ones.
    """
    trained_PG, baseline_PG = _masks(rewards_PG, trained_PG, baseline_PG)
    deviations_PG, signal_P = deviations(rewards_PG, trained_PG, baseline_PG)
    advantage = ADVANTAGES[kind] if isinstance(kind, str) else kind
    return advantage(deviations_PG, baseline_PG).masked_fill(~(trained_PG & signal_P[:, None]), 0.0)


def have_signal(rewards_PG: Tensor, trained_PG: Tensor | None = None, baseline_PG: Tensor | None = None) -> Tensor:
    """Return which groups have an advantage other than 0, [P] bool. Masks as in `group_advantages`."""
    return deviations(rewards_PG, *_masks(rewards_PG, trained_PG, baseline_PG))[1]


def deviations(rewards_PG: Tensor, trained_PG: Tensor, baseline_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Return r - mean of the baseline [P, G], float64, and which groups have signal [P].

    A group has signal if the reward of a trained completion differs from the mean by more than rounding
    (NO_DIFFERENCE). A group with fewer than two completions in its baseline has none.
    """
    rewards_PG = rewards_PG.double()
    first_P1 = rewards_PG.gather(-1, baseline_PG.int().argmax(dim=-1, keepdim=True))
    from_first_PG = rewards_PG - first_P1  # equal rewards give zeros, whose mean is exact
    total_P1 = from_first_PG.masked_fill(~baseline_PG, 0.0).sum(dim=-1, keepdim=True)
    deviations_PG = from_first_PG - total_P1 / _count(baseline_PG).clamp(min=1)
    size_P1 = rewards_PG.abs().masked_fill(~baseline_PG, 0.0).amax(dim=-1, keepdim=True).clamp(min=1.0)
    differs_PG = deviations_PG.abs() > NO_DIFFERENCE * size_P1
    return deviations_PG, (differs_PG & trained_PG).any(dim=-1)


def _count(baseline_PG: Tensor) -> Tensor:
    return baseline_PG.sum(dim=-1, keepdim=True, dtype=torch.float64)  # the ratio of integer counts would be float32


def _masks(rewards_PG: Tensor, trained_PG: Tensor | None, baseline_PG: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both masks. Replace None by the default."""
    trained_PG = rewards_PG.new_ones(rewards_PG.shape, dtype=torch.bool) if trained_PG is None else trained_PG
    return trained_PG, trained_PG if baseline_PG is None else baseline_PG
