"""Penalties that keep the policy near the reweighted reference. Each is named after the quantity whose gradient it has.

(rapo_paper is named after its source.) T tokens, sampled from pi = pi_theta; V the vocabulary. p^ = pihat_ref,
rho_t = p^(y_t|s_t) / pi(y_t|s_t). A loss optimises the quantity that its expected gradient belongs to, which can differ
from its value. So the table, and the metrics of a run, keep the two apart.

| name             | differentiated                             | expected gradient           | value reported |
|------------------|--------------------------------------------|-----------------------------|----------------|
| forward_kl       | stop(rho - 1) * (-log pi)                  | of KL(p^ || pi)             | KL(p^ || pi)   |
| forward_kl_exact | sum_v p^ (log p^ - log pi)                 | of KL(p^ || pi)             | KL(p^ || pi)   |
| forward_kl_k3    | rho - 1 - log rho, "k3", uncorrected       | of KL(p^ || pi), on-policy  | KL(pi || p^)   |
| rapo_paper       | rho log rho - rho + 1                      | of 1/2 E_p^[(log rho)^2]    | KL(p^ || pi)   |
| reverse_kl       | 1/2 (log rho)^2, "k2"                      | of KL(pi || p^)             | KL(pi || p^)   |
| reverse_kl_k3    | (rho - 1 - log rho) * pi / stop(pi)        | of KL(pi || p^)             | KL(pi || p^)   |
| reverse_kl_exact | sum_v pi (log pi - log p^)                 | of KL(pi || p^)             | KL(pi || p^)   |
| none             | nothing                                    | none                        | 0              |

Tokens that an older policy or the engine sampled get a detached, truncated importance weight (`loss.py`). Only
forward_kl_k3 has none, as in other libraries. `python -m megatron_rapo audit` measures this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_rapo import builtin_names


class Penalty(NamedTuple):
    """Per-token results, each [T]."""

    loss_T: Tensor  # what is differentiated
    value_T: Tensor  # detached; its mean under pi_theta is the value reported
    capped_T: Tensor  # bool: |log rho| was beyond the cap


def clamp_keep_grad(log_ratio_T: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Clamp log-ratios to +-cap before exp and keep their gradients. Also return which were clamped (bool)."""
    excess_T = (log_ratio_T - log_ratio_T.clamp(-cap, cap)).detach()
    return log_ratio_T - excess_T, excess_T != 0


def forward_kl(logp_T: Tensor, ref_logp_T: Tensor, log_rho_cap: float) -> Penalty:
    """Return a loss with the forward KL's unbiased gradient -E_pi[rho * grad log pi].

    Subtracting 1 from rho keeps the expectation, since E_pi[grad log pi] = 0. It removes the noise while the policy is
    near the reference. The paper's estimator gives this gradient if its score-function term is added.
    """
    log_rho_T, capped_T = clamp_keep_grad(ref_logp_T - logp_T.detach(), log_rho_cap)
    rho_T = log_rho_T.exp()
    return Penalty((rho_T - 1) * -logp_T, rho_T * log_rho_T - rho_T + 1, capped_T)


def forward_kl_k3(logp_T: Tensor, ref_logp_T: Tensor, log_rho_cap: float) -> Penalty:
    """Return k3 (Schulman; verl's low_var_kl, TRL's without use_bias_correction_kl), which they call reverse KL.

    Its value is the reverse KL. Its gradient is (1 - rho) * grad log pi, the forward KL's. verl clamps k3 to [-10, 10],
    so its gradient is 0 where log rho > 2.61 or < -11.0. Here the gradient is kept.
    """
    log_rho_T, capped_T = clamp_keep_grad(ref_logp_T - logp_T, log_rho_cap)
    loss_T = log_rho_T.exp() - 1 - log_rho_T
    return Penalty(loss_T, loss_T.detach(), capped_T)


def rapo_paper(logp_T: Tensor, ref_logp_T: Tensor, log_rho_cap: float) -> Penalty:
    """Return the estimator of arXiv 2510.03865, differentiated as written.

    d/dtheta (rho log rho - rho + 1) = -rho log rho * grad log pi. Its mean under pi_theta is
    -E_pihat[log rho * grad log pi] = grad 1/2 E_pihat[(log rho)^2].
    """
    log_rho_T, capped_T = clamp_keep_grad(ref_logp_T - logp_T, log_rho_cap)
    rho_T = log_rho_T.exp()
    loss_T = rho_T * log_rho_T - rho_T + 1
    return Penalty(loss_T, loss_T.detach(), capped_T)


def reverse_kl(logp_T: Tensor, ref_logp_T: Tensor, log_rho_cap: float) -> Penalty:
    """Return k2, with the reverse KL's unbiased gradient -E_pi[log rho * grad log pi]. k3's value varies less."""
    log_rho_T, capped_T = clamp_keep_grad(ref_logp_T - logp_T, log_rho_cap)
    detached_T = log_rho_T.detach()
    return Penalty(0.5 * log_rho_T**2, detached_T.exp() - 1 - detached_T, capped_T)


def reverse_kl_k3(logp_T: Tensor, ref_logp_T: Tensor, log_rho_cap: float) -> Penalty:
    """Return k3 with its score-function term, TRL 1.16's default (use_bias_correction_kl).

    (1 - rho) + (rho - 1 - log rho) = -log rho, so each token has the gradient of k2.
    """
    log_rho_T, capped_T = clamp_keep_grad(ref_logp_T - logp_T, log_rho_cap)
    k3_T = log_rho_T.exp() - 1 - log_rho_T
    return Penalty(k3_T * (logp_T - logp_T.detach()).exp(), k3_T.detach(), capped_T)


def none(logp_T: Tensor, ref_logp_T: Tensor, log_rho_cap: float) -> Penalty:
    """Return no penalty, for runs without a reference."""
    zero_T = torch.zeros_like(logp_T)
    return Penalty(zero_T, zero_T, zero_T.bool())


def exact(kl_T: Tensor) -> Penalty:
    """Return a divergence that `output_head.py` has summed over the vocabulary. It needs neither ratio nor cap."""
    return Penalty(kl_T, kl_T.detach(), torch.zeros_like(kl_T, dtype=torch.bool))


Quantity = Literal["forward_kl", "reverse_kl", "half_squared_log_rho"]
QUANTITIES: dict[Quantity, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": lambda logp_TV, ref_logp_TV: (ref_logp_TV.exp() * (ref_logp_TV - logp_TV)).sum(-1),
    "reverse_kl": lambda logp_TV, ref_logp_TV: (logp_TV.exp() * (logp_TV - ref_logp_TV)).sum(-1),
    "half_squared_log_rho": lambda logp_TV, ref_logp_TV: (
        0.5 * (ref_logp_TV.exp() * (ref_logp_TV - logp_TV) ** 2).sum(-1)
    ),
}
"""Definitions over whole distributions: KL(p^ || pi), KL(pi || p^) and 1/2 E_p^[(log rho)^2], [T], nats."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """One choice of algorithm.divergence. `gradient` and `value` are its claims; None claims nothing."""

    gradient: Quantity | None = None  # the quantity whose gradient is the expected gradient
    value: Quantity | None = None  # the quantity that is reported
    estimate: Callable[[Tensor, Tensor, float], Penalty] = none  # from (logp_T, ref_logp_T, log_rho_cap)
    exact: Literal["forward", "reverse"] | None = None  # use the sum over the vocabulary instead of `estimate`
    corrected: bool = False  # weigh tokens that another policy sampled by their importance
    reference: bool = True  # score the reference


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(gradient="forward_kl", value="forward_kl", estimate=forward_kl, corrected=True),
    "forward_kl_exact": Divergence(gradient="forward_kl", value="forward_kl", exact="forward"),
    "forward_kl_k3": Divergence(gradient="forward_kl", value="reverse_kl", estimate=forward_kl_k3),
    "rapo_paper": Divergence(gradient="half_squared_log_rho", value="forward_kl", estimate=rapo_paper, corrected=True),
    "reverse_kl": Divergence(gradient="reverse_kl", value="reverse_kl", estimate=reverse_kl, corrected=True),
    "reverse_kl_k3": Divergence(gradient="reverse_kl", value="reverse_kl", estimate=reverse_kl_k3, corrected=True),
    "reverse_kl_exact": Divergence(gradient="reverse_kl", value="reverse_kl", exact="reverse"),
    "none": Divergence(reference=False),
}
assert tuple(DIVERGENCES) == builtin_names.DIVERGENCES, "megatron_rapo/builtin_names.py lists other divergences"
