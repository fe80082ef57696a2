"""Compute phi, the exponent of the reference, from the reward.

RAPO (arXiv 2510.03865) penalises the distance to pihat_ref = pi_ref^phi / Z, where phi rises with the reward. Per
token, pihat_ref is exactly softmax(phi * z_ref). So Z needs no sampling: the reference's logits are multiplied by phi
(`output_head.py`).

Every shape rises from phi_min at the lowest reward of the declared range to phi_max at the highest one. phi = 1 keeps
the reference as it is. phi = 0 makes it uniform over the vocabulary; the penalty would drive failing groups there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_rapo import builtin_names


def linear(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """Return the share itself."""
    return share


def power(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """Return share^exponent. Above 1 only the best rewards keep the reference, below 1 all but the worst do."""
    return share**exponent


def sigmoid(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """Return a soft step at the middle of the range, from 0 to 1. A larger `sharpness` makes it steeper."""
    half = torch.tensor(sharpness / 4, dtype=share.dtype)  # tanh keeps digits near 0 that sigmoid would round off
    return (torch.tanh((2 * share - 1) * half) / torch.tanh(half) + 1) / 2


def constant(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """Return 1 for every share."""
    return torch.ones_like(share)


PhiShape = Callable[[Tensor, float, float], Tensor]
"""Function of (share, exponent, sharpness). Both its share and its result are 0 to 1.

`share` is the reward's position in its range. The result is phi's position between phi_min and phi_max."""
PHI_SHAPES: dict[str, PhiShape] = {f.__name__: f for f in (linear, power, sigmoid, constant)}
assert tuple(PHI_SHAPES) == builtin_names.PHI_SHAPES, "megatron_rapo/builtin_names.py lists other shapes of phi"


def phi_of(
    rewards: Tensor,
    *,
    shape: str | PhiShape,
    reward_range: tuple[float, float],
    phi_min: float,
    phi_max: float,
    exponent: float,
    sharpness: float,
) -> Tensor:
    """Return phi of each reward, same shape as `rewards`.

    `shape` is linear, power (with `exponent`), sigmoid (with `sharpness`), constant (phi_max for every reward), or a
    function like those. `reward_range` is (lowest, highest). Raises ValueError for a reward outside it, because phi
    would leave [phi_min, phi_max].
    """
    lowest, highest = reward_range
    if rewards.numel() and (rewards.min() < lowest or rewards.max() > highest):
        raise ValueError(
            f"rewards {rewards.min().item()} to {rewards.max().item()}: outside their declared range "
            f"[{lowest}, {highest}]; declare the range that the reward really has."
        )
    share = ((rewards - lowest) / (highest - lowest)).clamp(max=1.0)  # rounding in float32 can exceed 1
    rise = PHI_SHAPES[shape] if isinstance(shape, str) else shape
    return phi_min + (phi_max - phi_min) * rise(share, exponent, sharpness)
