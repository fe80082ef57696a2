"""The algorithm as pure functions of tensors and floats, without configuration or collectives.

Functions for the loss return per-token values or sums. The caller divides by the global number of tokens.
"""

from megatron_rapo.algo.advantages import ADVANTAGES, Advantage, group_advantages, have_signal
from megatron_rapo.algo.divergences import DIVERGENCES, QUANTITIES, Divergence, Penalty
from megatron_rapo.algo.loss import LossInputs, LossSettings, LossSums, rapo_loss
from megatron_rapo.algo.reweighting import PHI_SHAPES, PhiShape, phi_of

__all__ = [
    "ADVANTAGES",
    "DIVERGENCES",
    "PHI_SHAPES",
    "QUANTITIES",
    "Advantage",
    "Divergence",
    "LossInputs",
    "LossSettings",
    "LossSums",
    "Penalty",
    "PhiShape",
    "group_advantages",
    "have_signal",
    "phi_of",
    "rapo_loss",
]
