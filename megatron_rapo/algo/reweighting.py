"""phi: how much of the reference is kept, by reward.

RAPO (arXiv 2510.03865) penalises the distance to pihat_ref = pi_ref^phi / Z with phi rising in the reward. Taken per
token, pihat_ref is exactly softmax(phi * z_ref), so the normaliser needs no sampling: the reference is scored
with its logits multiplied by phi (`mcore/output_head.py`).
"""

from __future__ import annotations

from torch import Tensor


def linear_phi(rewards: Tensor, *, reward_range: tuple[float, float], phi_min: float, phi_max: float) -> Tensor:
    """phi of each reward, same shape: phi_min at the range's lowest reward, phi_max at its highest, linear between.

    phi = 1 leaves the reference as it is; phi = 0 makes it uniform over the vocabulary, which most tokens of a
    failing group would then be driven to.
    Raises ValueError for a reward outside `reward_range` (lowest, highest): phi would leave [phi_min, phi_max].
    """
    lowest, highest = reward_range
    if rewards.numel() and (rewards.min() < lowest or rewards.max() > highest):
        raise ValueError(
            f"rewards {rewards.min().item()} to {rewards.max().item()}: outside their declared range "
            f"[{lowest}, {highest}]; declare the range that the reward really has."
        )
    return phi_min + (phi_max - phi_min) * (rewards - lowest) / (highest - lowest)
