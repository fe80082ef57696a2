"""The RAPO loss: clipped surrogate, divergence from the reweighted reference, entropy bonus.

    J(theta) = E[ surrogate - alpha * divergence(pihat_ref, pi_theta) + beta * H(pi_theta) ]     (arXiv 2510.03865)

and the loss is -J. T tokens of one micro-batch; every result is a sum over the tokens that mask_T selects, to be
divided by the number of such tokens of the whole optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rapo.algo.divergences import DIVERGENCES


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the selected tokens. `loss` is differentiable, `metrics` are detached scalars."""

    loss: Tensor
    metrics: dict[str, Tensor]


def clipped_surrogate(
    logp_T: Tensor, old_logp_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """min(w A, clip(w, 1 - clip_low, 1 + clip_high) A), w = pi_theta / pi_old; and where the clip decided (bool)."""
    ratio_T = (logp_T - old_logp_T).exp()
    free_T = ratio_T * advantage_T
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantage_T
    return torch.minimum(free_T, clipped_T), clipped_T < free_T


def rapo_loss(
    logp_T: Tensor,
    entropy_T: Tensor,
    *,
    old_logp_T: Tensor,
    ref_logp_T: Tensor,
    engine_logp_T: Tensor,
    advantage_T: Tensor,
    mask_T: Tensor,
    divergence: str,
    alpha: float,
    beta: float,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    log_ratio_cap: float,
) -> LossSums:
    """The loss of one micro-batch, summed over tokens.

    All tensors are [T] float32, mask_T is bool; only logp_T and entropy_T carry gradients. logp_T is the policy's
    log-probability of each sampled token, old_logp_T the same before this rollout's first optimizer step,
    engine_logp_T what the rollout engine said of it, ref_logp_T that of the reweighted reference; nats.

    Tokens were drawn by the engine. The surrogate's expectation is under pi_old and the divergence's under pi_theta,
    so each carries its own importance weight against the engine, detached and truncated at `importance_cap`.
    """
    # Masked-out tokens are emptied before the arithmetic: masked after it, 0 * inf would be nan in the backward pass.
    logp_T, entropy_T, old_logp_T, ref_logp_T, engine_logp_T, advantage_T = (
        values_T.masked_fill(~mask_T, 0.0)
        for values_T in (logp_T, entropy_T, old_logp_T, ref_logp_T, engine_logp_T, advantage_T)
    )
    to_old_T = (old_logp_T - engine_logp_T).exp()
    to_policy_T = (logp_T.detach() - engine_logp_T).exp()
    importance_capped_T = (to_old_T > importance_cap) | ((to_policy_T > importance_cap) & (alpha > 0))
    to_old_T, to_policy_T = to_old_T.clamp(max=importance_cap), to_policy_T.clamp(max=importance_cap)
    surrogate_T, clipped_T = clipped_surrogate(logp_T, old_logp_T, advantage_T, clip_low=clip_low, clip_high=clip_high)
    penalty = DIVERGENCES[divergence](logp_T, ref_logp_T, log_ratio_cap)
    objective_T = to_old_T * surrogate_T - alpha * to_policy_T * penalty.loss_T + beta * entropy_T

    def total(values_T: Tensor) -> Tensor:
        return values_T.masked_fill(~mask_T, 0.0).sum()

    metrics = {
        "surrogate": to_old_T * surrogate_T,
        "divergence": to_policy_T * penalty.value_T,
        "entropy": entropy_T,
        "clipped": clipped_T.float(),
        "log_ratio_capped": penalty.capped_T.float(),
        "importance_capped": importance_capped_T.float(),
    }
    return LossSums(loss=-total(objective_T), metrics={name: total(v_T.detach()) for name, v_T in metrics.items()})
