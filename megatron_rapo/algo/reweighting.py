"""phi: how much of the reference is kept, by reward.

RAPO (arXiv 2510.03865) penalises the distance to pihat_ref = pi_ref^phi / Z with phi rising in the reward. Taken per
token, pihat_ref is exactly softmax(phi * z_ref), so the normaliser needs no sampling: the reference is scored
with its logits multiplied by phi (`output_head.py`).

Every shape rises from phi_min at the lowest reward of the declared range to phi_max at the highest. phi = 1 leaves the
reference as it is; phi = 0 makes it uniform over the vocabulary, which most tokens of a failing group would then be
driven to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_rapo import choices


def linear(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """The share itself."""
    return share


def power(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """share^exponent: above 1 only the best rewards keep the reference, below 1 all but the worst do."""
    return share**exponent


def sigmoid(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """A step at the middle of the range, the steeper the larger `sharpness`; scaled to reach 0 and 1 at its ends."""
    half = torch.tensor(sharpness / 4, dtype=share.dtype)  # by tanh, which near 0 keeps what sigmoid rounds off
    return (torch.tanh((2 * share - 1) * half) / torch.tanh(half) + 1) / 2


def constant(share: Tensor, exponent: float, sharpness: float) -> Tensor:
    """1 at every share."""
    return torch.ones_like(share)


PhiShape = Callable[[Tensor, float, float], Tensor]
"""Function of (share, exponent, sharpness): from a reward's place in its range, 0 to 1, to how much of the way from
phi_min to phi_max its phi goes, 0 to 1."""
PHI_SHAPES: dict[str, PhiShape] = {f.__name__: f for f in (linear, power, sigmoid, constant)}
assert tuple(PHI_SHAPES) == choices.PHI_SHAPES, "megatron_rapo/choices.py lists other shapes of phi"


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
    """phi of each reward, same shape as `rewards`.

    `shape` is linear, power (with `exponent`), sigmoid (with `sharpness`), constant (phi_max whatever the reward), or a
    function like those. `reward_range` is (lowest, highest). Raises ValueError for a reward outside it: phi would leave
    [phi_min, phi_max].
    """
    lowest, highest = reward_range
    if rewards.numel() and (rewards.min() < lowest or rewards.max() > highest):
        raise ValueError(
            f"rewards {rewards.min().item()} to {rewards.max().item()}: outside their declared range "
            f"[{lowest}, {highest}]; declare the range that the reward really has."
        )
    share = ((rewards - lowest) / (highest - lowest)).clamp(max=1.0)  # which float32 rounds beyond it
    rise = PHI_SHAPES[shape] if isinstance(shape, str) else shape
    kept = rise(share, exponent, sharpness)
    return phi_min + (phi_max - phi_min) * kept
