"""phi: how much of the reference is kept, by reward.

RAPO (arXiv 2510.03865) penalises the distance to pihat_ref = pi_ref^phi / Z with phi rising in the reward. Taken per
token, pihat_ref is exactly softmax(phi * z_ref), so the normaliser needs no sampling: the reference is scored
with its logits multiplied by phi (`output_head.py`).

Every shape rises from phi_min at the lowest reward of the declared range to phi_max at the highest. phi = 1 leaves the
reference as it is; phi = 0 makes it uniform over the vocabulary, which most tokens of a failing group would then be
driven to.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear(share: Tensor) -> Tensor:
    """The share itself."""
    return share


def power(share: Tensor, exponent: float) -> Tensor:
    """share^exponent: above 1 only the best rewards keep the reference, below 1 all but the worst do."""
    return share**exponent


def sigmoid(share: Tensor, sharpness: float) -> Tensor:
    """A step at the middle of the range, the steeper the larger `sharpness`; scaled to reach 0 and 1 at its ends."""
    half = torch.tensor(sharpness / 4, dtype=share.dtype)  # by tanh, which near 0 keeps what sigmoid rounds off
    return (torch.tanh((2 * share - 1) * half) / torch.tanh(half) + 1) / 2


def phi_of(
    rewards: Tensor,
    *,
    shape: str,
    reward_range: tuple[float, float],
    phi_min: float,
    phi_max: float,
    exponent: float,
    sharpness: float,
) -> Tensor:
    """phi of each reward, same shape as `rewards`.

    `shape` is linear, power (with `exponent`), sigmoid (with `sharpness`), or constant: phi_max whatever the reward.
    `reward_range` is (lowest, highest). Raises ValueError for a reward outside it: phi would leave [phi_min, phi_max].
    """
    lowest, highest = reward_range
    if rewards.numel() and (rewards.min() < lowest or rewards.max() > highest):
        raise ValueError(
            f"rewards {rewards.min().item()} to {rewards.max().item()}: outside their declared range "
            f"[{lowest}, {highest}]; declare the range that the reward really has."
        )
    share = ((rewards - lowest) / (highest - lowest)).clamp(max=1.0)  # which float32 rounds beyond it
    match shape:
        case "linear":
            kept = linear(share)
        case "power":
            kept = power(share, exponent)
        case "sigmoid":
            kept = sigmoid(share, sharpness)
        case "constant":
            kept = torch.ones_like(share)
        case _:
            raise ValueError(f"shape={shape!r}: no such shape of phi; use linear, power, sigmoid or constant.")
    return phi_min + (phi_max - phi_min) * kept
