"""Penalties that keep the policy near the reweighted reference, each named by the gradient that it has.

T tokens, sampled from pi_theta. rho_t = pihat_ref(y_t|s_t) / pi_theta(y_t|s_t). What a loss optimises is its
expected gradient, not its value: the two are returned apart.

| name       | differentiated               | expected gradient, on-policy                 | value reported  |
|------------|------------------------------|----------------------------------------------|-----------------|
| rapo_paper | rho log rho - rho + 1        | of 1/2 E_pihat[(log rho)^2]: a proxy, no KL  | forward KL      |
| forward_kl | stop(rho) * (-log pi_theta)  | of KL(pihat_ref || pi_theta)                 | forward KL      |
| reverse_kl | 1/2 (log rho)^2 (k2)         | of KL(pi_theta || pihat_ref)                 | reverse KL (k3) |

Off-policy the caller multiplies by a detached importance weight (`loss.py`). Derivations: docs of each function;
values and expected gradients are checked against enumeration in tests/algo/test_divergences.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Penalty(NamedTuple):
    """Per-token results, each [T]."""

    loss_T: Tensor  # what is differentiated
    value_T: Tensor  # detached; its mean under pi_theta is the divergence's value
    capped_T: Tensor  # bool: |log rho| was beyond the cap


def _capped_log_rho(logp_T: Tensor, ref_logp_T: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """log rho with its value held within +-cap (exp must not overflow) and its gradient kept as if it were not."""
    log_rho_T = ref_logp_T - logp_T
    excess_T = (log_rho_T - log_rho_T.clamp(-cap, cap)).detach()
    return log_rho_T - excess_T, excess_T != 0


def rapo_paper(logp_T: Tensor, ref_logp_T: Tensor, log_ratio_cap: float) -> Penalty:
    """The estimator of arXiv 2510.03865, differentiated as written.

    d/dtheta (rho log rho - rho + 1) = -rho log rho * grad log pi, whose mean under pi_theta is
    -E_pihat[log rho * grad log pi] = grad 1/2 E_pihat[(log rho)^2].
    """
    log_rho_T, capped_T = _capped_log_rho(logp_T, ref_logp_T, log_ratio_cap)
    rho_T = log_rho_T.exp()
    loss_T = rho_T * log_rho_T - rho_T + 1
    return Penalty(loss_T, loss_T.detach(), capped_T)


def forward_kl(logp_T: Tensor, ref_logp_T: Tensor, log_ratio_cap: float) -> Penalty:
    """Forward KL(pihat_ref || pi_theta) with its unbiased gradient, -E_pi[rho * grad log pi]."""
    log_rho_T, capped_T = _capped_log_rho(logp_T.detach(), ref_logp_T, log_ratio_cap)
    rho_T = log_rho_T.exp()
    return Penalty(-rho_T * logp_T, rho_T * log_rho_T - rho_T + 1, capped_T)


def reverse_kl(logp_T: Tensor, ref_logp_T: Tensor, log_ratio_cap: float) -> Penalty:
    """Reverse KL(pi_theta || pihat_ref): k2's gradient, -E_pi[log rho * grad log pi]; k3's value, of low variance.

    (k3 itself, differentiated, has the *forward* KL's gradient, although it is commonly labelled reverse.)
    """
    log_rho_T, capped_T = _capped_log_rho(logp_T, ref_logp_T, log_ratio_cap)
    detached_T = log_rho_T.detach()
    return Penalty(0.5 * log_rho_T**2, detached_T.exp() - 1 - detached_T, capped_T)


def none(logp_T: Tensor, ref_logp_T: Tensor, log_ratio_cap: float) -> Penalty:
    """No penalty; for runs without a reference."""
    zero_T = torch.zeros_like(logp_T)
    return Penalty(zero_T, zero_T, zero_T.bool())


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Penalty]] = {
    f.__name__: f for f in (rapo_paper, forward_kl, reverse_kl, none)
}
