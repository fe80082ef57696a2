"""The RAPO loss: clipped surrogate, divergence from the reweighted reference, entropy bonus.

    J(theta) = E[ surrogate - alpha * divergence(pihat_ref, pi_theta) + beta * H(pi_theta) ]     (arXiv 2510.03865)

and the loss is -J. T tokens of one micro-batch; every result is a sum over the tokens that mask_T selects, to be
divided by the number of such tokens of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from megatron_rapo.algo.divergences import DIVERGENCES, Divergence, Penalty, clamp_keep_grad, exact

MAX_LOG_RATIO = 20.0
"""Clamp log-ratios of policies to this before exp, and count how many were clamped. Nats; float32 overflows at 88."""
NO_SPLITS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What the loss needs to know of T tokens. [T] float32 or wider, nats; mask_T is bool.

    Only logp_T, entropy_T and kl_T carry gradients.
    """

    logp_T: Tensor
    """Log-probability of each sampled token under the policy, pi_theta."""
    entropy_T: Tensor
    """Entropy of the policy over the vocabulary."""
    kl_T: Tensor | None = None
    """Divergence from the reference summed over the vocabulary, for an exact divergence."""
    old_logp_T: Tensor
    """Log-probability under pi_old, the policy before this rollout's first optimizer step."""
    ref_logp_T: Tensor
    """Log-probability under the reweighted reference."""
    engine_logp_T: Tensor
    """Log-probability that the rollout engine reported."""
    advantage_T: Tensor
    weight_T: Tensor
    """Weight of the token in the objective; 1 on average over the optimizer step."""
    mask_T: Tensor
    """True for the tokens that the loss is summed over."""
    sequence_log_ratio_T: Tensor | None = None
    """Mean of log pi / pi_old over the token's sequence, detached. It replaces the token's own ratio in the surrogate
    (GSPO, arXiv 2507.18071, equation 14)."""

    def without_masked(self) -> LossInputs:
        """Return the inputs with 0 for tokens that the mask excludes.

        Masking only the results would not do: in the backward pass 0 * inf is nan.
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mask_T"}
        emptied: dict[str, Any] = {n: t if t is None else t.masked_fill(~self.mask_T, 0) for n, t in tensors.items()}
        return replace(self, **emptied)

    def log_ratio(self) -> tuple[Tensor, Tensor]:
        """Return the surrogate's log pi / pi_old, clamped to MAX_LOG_RATIO, and where it was clamped (bool); [T]."""
        log_ratio_T = self.logp_T - self.old_logp_T
        if self.sequence_log_ratio_T is not None:  # the sequence's value, the token's gradient
            log_ratio_T = self.sequence_log_ratio_T + self.logp_T - self.logp_T.detach()
        return clamp_keep_grad(log_ratio_T, MAX_LOG_RATIO)

    def penalty(self, settings: LossSettings) -> Penalty:
        """Return the divergence of each token, not yet corrected for the engine's sampling."""
        if not settings.kind.exact:
            return settings.kind.estimate(self.logp_T, self.ref_logp_T, settings.log_rho_cap)
        assert self.kl_T is not None, f"{settings.divergence} is a sum over the vocabulary, which kl_T must have"
        return exact(self.kl_T)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Coefficients and limits of the loss, as the [algorithm] section names them."""

    divergence: str | Divergence
    """A divergence, or a name in DIVERGENCES."""
    alpha: float
    """Coefficient of the divergence."""
    beta: float
    """Coefficient of the entropy bonus."""
    clip_low: float
    clip_high: float
    """The surrogate clips the ratio to [1 - clip_low, 1 + clip_high]."""
    importance_cap: float
    """Largest importance weight against the engine."""
    log_rho_cap: float
    """Largest |log rho| of a divergence, nats."""

    @property
    def kind(self) -> Divergence:
        """Return the divergence."""
        return DIVERGENCES[self.divergence] if isinstance(self.divergence, str) else self.divergence


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the selected tokens. `loss` is differentiable, `metrics` are detached scalars."""

    loss: Tensor
    metrics: dict[str, Tensor]


def clipped_surrogate(
    log_ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) with w = exp(log_ratio), and where the clip decided.

    All are [T]; the second result is bool.
    """
    ratio_T = log_ratio_T.exp()
    free_T = ratio_T * advantage_T
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantage_T
    return torch.minimum(free_T, clipped_T), clipped_T < free_T


def importance(logp_T: Tensor, engine_logp_T: Tensor) -> Tensor:
    """Return pi / pi_engine, [T], detached: a sampled token's weight in an expectation under pi."""
    return clamp_keep_grad(logp_T.detach() - engine_logp_T, MAX_LOG_RATIO)[0].exp()


def rapo_loss(inputs: LossInputs, settings: LossSettings, splits: Mapping[str, Tensor] = NO_SPLITS) -> LossSums:
    """Compute the loss of one micro-batch, summed over its tokens.

    The engine sampled the tokens. The surrogate is an expectation under pi_old and the divergence one under pi_theta,
    so each has its own importance weight against the engine, detached and truncated at `importance_cap`. A divergence
    that is summed over the vocabulary, or that is declared uncorrected, has none.

    Each metric is a sum over the tokens that mask_T selects. "metric/split" is the sum over those of them that the mask
    `splits[split]`, [T] bool, selects too, and "tokens/split" counts them.
    """
    given, kind = inputs.without_masked(), settings.kind
    logp_T = given.logp_T
    to_old_T = importance(given.old_logp_T, given.engine_logp_T)
    to_policy_T = importance(logp_T, given.engine_logp_T)
    log_ratio_T, ratio_capped_T = given.log_ratio()
    surrogate_T, clipped_T = clipped_surrogate(
        log_ratio_T, given.advantage_T, clip_low=settings.clip_low, clip_high=settings.clip_high
    )
    surrogate_T = to_old_T.clamp(max=settings.importance_cap) * surrogate_T
    penalty = given.penalty(settings)
    correction_T = to_policy_T.clamp(max=settings.importance_cap) if kind.corrected else torch.ones_like(to_policy_T)
    # Without a bonus the entropy is left out of the graph, so that its gradient costs nothing.
    bonus_T = settings.beta * given.entropy_T if settings.beta else torch.zeros_like(given.entropy_T)
    objective_T = surrogate_T - settings.alpha * correction_T * penalty.loss_T + bonus_T

    rho_T = (given.ref_logp_T - logp_T.detach()).clamp(-settings.log_rho_cap, settings.log_rho_cap).exp()
    over_cap_T = to_old_T > settings.importance_cap
    metrics_T = {
        "surrogate": given.weight_T * surrogate_T,
        "divergence": given.weight_T * correction_T * penalty.value_T,
        "entropy_bonus": given.weight_T * bonus_T,
        "kl": correction_T * penalty.value_T,
        "entropy": given.entropy_T,
        "clipped": clipped_T,
        "log_rho_capped": penalty.capped_T,
        "ratio_capped": ratio_capped_T,
        "staleness": (logp_T - given.old_logp_T).abs(),
        "importance_capped": over_cap_T | ((to_policy_T > settings.importance_cap) & kind.corrected),
        "rho": rho_T,
        "rho_squared": rho_T**2,
        "importance": to_policy_T,
        "importance_squared": to_policy_T**2,
    }
    return LossSums(loss=-(given.weight_T * objective_T).sum(), metrics=_sums(metrics_T, given.mask_T, splits))


def _sums(metrics_T: Mapping[str, Tensor], mask_T: Tensor, splits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sums = {}
    for suffix, chosen_T in {"": mask_T, **{f"/{name}": mask_T & split_T for name, split_T in splits.items()}}.items():
        for name, values_T in metrics_T.items():
            sums[name + suffix] = values_T.detach().masked_fill(~chosen_T, 0).sum()
        if suffix:
            sums["tokens" + suffix] = chosen_T.sum()
    return sums
