"""The algorithm as pure functions of tensors and floats: no configuration, no collectives.

Functions that feed the loss return per-token values or sums; the caller owns the denominator.
"""

from megatron_rapo.algo.advantages import group_advantages
from megatron_rapo.algo.divergences import DIVERGENCES, Penalty
from megatron_rapo.algo.loss import LossSums, rapo_loss
from megatron_rapo.algo.reweighting import linear_phi

__all__ = ["DIVERGENCES", "LossSums", "Penalty", "group_advantages", "linear_phi", "rapo_loss"]
