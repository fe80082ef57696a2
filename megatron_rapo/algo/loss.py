"""The RAPO loss: clipped surrogate, divergence from the reweighted reference, entropy bonus.

    J(theta) = E[ surrogate - alpha * divergence(pihat_ref, pi_theta) + beta * H(pi_theta) ]     (arXiv 2510.03865)

and the loss is -J. T tokens of one micro-batch; every result is a sum over the tokens that mask_T selects, to be
divided by the number of such tokens of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_rapo.algo.divergences import DIVERGENCES, Divergence, clamp_keep_grad, exact

MAX_LOG_RATIO = 20.0
"""Of policies that should be near each other, nats: held there before exp (float32 overflows at 88), and counted."""
NO_SPLITS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the selected tokens. `loss` is differentiable, `metrics` are detached scalars."""

    loss: Tensor
    metrics: dict[str, Tensor]


def clipped_surrogate(
    log_ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """min(w A, clip(w, 1 - clip_low, 1 + clip_high) A), w = exp(log_ratio); and where the clip decided (bool)."""
    ratio_T = log_ratio_T.exp()
    free_T = ratio_T * advantage_T
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantage_T
    return torch.minimum(free_T, clipped_T), clipped_T < free_T


def importance(logp_T: Tensor, engine_logp_T: Tensor) -> Tensor:
    """pi / pi_engine, detached: the weight of a token that the engine sampled in an expectation under pi."""
    return clamp_keep_grad(logp_T.detach() - engine_logp_T, MAX_LOG_RATIO)[0].exp()


def rapo_loss(
    logp_T: Tensor,
    entropy_T: Tensor,
    kl_T: Tensor | None = None,
    *,
    old_logp_T: Tensor,
    ref_logp_T: Tensor,
    engine_logp_T: Tensor,
    advantage_T: Tensor,
    weight_T: Tensor,
    mask_T: Tensor,
    sequence_log_ratio_T: Tensor | None = None,
    divergence: str | Divergence,
    alpha: float,
    beta: float,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    log_rho_cap: float,
    splits: Mapping[str, Tensor] = NO_SPLITS,
) -> LossSums:
    """The loss of one micro-batch, summed over tokens.

    All tensors are [T] float32 (or wider), masks are bool; only logp_T, entropy_T and kl_T carry gradients. Nats.

    logp_T: the policy's log-probability of each sampled token; old_logp_T: the same before this rollout's first
    optimizer step; engine_logp_T: what the rollout engine said of it; ref_logp_T: the reweighted reference's.
    entropy_T, kl_T: of the policy over the vocabulary; kl_T is given where `divergence` (one, or a name in DIVERGENCES)
    is an exact one. weight_T: of the token in the objective, 1 on average over the optimizer step.
    sequence_log_ratio_T: mean of log pi / pi_old over the token's sequence, detached; given, it is the surrogate's
    ratio (GSPO, arXiv 2507.18071, equation 14) instead of the token's own.

    Tokens were drawn by the engine. The surrogate's expectation is under pi_old and the divergence's under pi_theta,
    so each carries its own importance weight against the engine, detached and truncated at `importance_cap`. A
    divergence summed over the vocabulary needs none, and one declared uncorrected has none.

    The metrics are sums over all selected tokens, and over those that each mask of `splits` selects, under the name
    "metric/split"; "tokens/split" counts them.
    """
    # Masked-out tokens are emptied before the arithmetic: masked after it, 0 * inf would be nan in the backward pass.
    logp_T, entropy_T, old_logp_T, ref_logp_T, engine_logp_T, advantage_T, weight_T = (
        values_T.masked_fill(~mask_T, 0.0)
        for values_T in (logp_T, entropy_T, old_logp_T, ref_logp_T, engine_logp_T, advantage_T, weight_T)
    )
    to_old_T, to_policy_T = importance(old_logp_T, engine_logp_T), importance(logp_T, engine_logp_T)
    log_ratio_T = logp_T - old_logp_T
    if sequence_log_ratio_T is not None:  # the sequence's value, the token's gradient
        log_ratio_T = sequence_log_ratio_T.masked_fill(~mask_T, 0.0) + logp_T - logp_T.detach()
    log_ratio_T, ratio_capped_T = clamp_keep_grad(log_ratio_T, MAX_LOG_RATIO)
    surrogate_T, clipped_T = clipped_surrogate(log_ratio_T, advantage_T, clip_low=clip_low, clip_high=clip_high)
    surrogate_T = to_old_T.clamp(max=importance_cap) * surrogate_T

    kind = DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
    if kind.exact:  # output_head.py has summed it over the vocabulary
        assert kl_T is not None, f"{divergence} is a sum over the vocabulary, which the output head must give"
        penalty = exact(kl_T.masked_fill(~mask_T, 0.0))
    else:
        penalty = kind.estimate(logp_T, ref_logp_T, log_rho_cap)
    correction_T = to_policy_T.clamp(max=importance_cap) if kind.corrected else torch.ones_like(to_policy_T)
    bonus_T = beta * entropy_T if beta else torch.zeros_like(entropy_T)  # unused, the entropy's gradient costs nothing
    objective_T = surrogate_T - alpha * correction_T * penalty.loss_T + bonus_T

    rho_T = (ref_logp_T - logp_T.detach()).clamp(-log_rho_cap, log_rho_cap).exp()
    metrics_T = {
        "surrogate": weight_T * surrogate_T,
        "divergence": weight_T * correction_T * penalty.value_T,
        "entropy_bonus": weight_T * bonus_T,
        "kl": correction_T * penalty.value_T,
        "entropy": entropy_T,
        "clipped": clipped_T,
        "log_rho_capped": penalty.capped_T,
        "ratio_capped": ratio_capped_T,
        "staleness": (logp_T - old_logp_T).abs(),
        "importance_capped": (to_old_T > importance_cap) | ((to_policy_T > importance_cap) & kind.corrected),
        "rho": rho_T,
        "rho_squared": rho_T**2,
        "importance": to_policy_T,
        "importance_squared": to_policy_T**2,
    }
    return LossSums(loss=-(weight_T * objective_T).sum(), metrics=_sums(metrics_T, mask_T, splits))


def _sums(metrics_T: Mapping[str, Tensor], mask_T: Tensor, splits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sums = {}
    for suffix, chosen_T in {"": mask_T, **{f"/{name}": mask_T & split_T for name, split_T in splits.items()}}.items():
        for name, values_T in metrics_T.items():
            sums[name + suffix] = values_T.detach().masked_fill(~chosen_T, 0).sum()
        if suffix:
            sums["tokens" + suffix] = chosen_T.sum()
    return sums
