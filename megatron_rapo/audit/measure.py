"""Measure the expected gradient of each term of a loss, and find the quantity that has this gradient.

The loss is that of training (`objective.batch_loss` of `output_head.token_scores`). Only the policy is small enough to
enumerate. A term's true gradient is summed over the states that the engine visits, like in token-level losses. The
advantages are those of a group so large that its mean and standard deviation are the true ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_rapo import builtin_names
from megatron_rapo.algo import QUANTITIES, LossSums
from megatron_rapo.algo.advantages import STD_OFFSET
from megatron_rapo.algo.divergences import Quantity
from megatron_rapo.audit.toy_policy import TabularPolicy, make_policy
from megatron_rapo.config import AlgorithmConfig, RewardConfig
from megatron_rapo.runtime.user_code import UserCodeError
from megatron_rapo.scoring.objective import batch_loss, reference_exponents
from megatron_rapo.scoring.objective_registry import advantage_of, divergence_of
from megatron_rapo.scoring.output_head import TokenScores
from megatron_rapo.scoring.packing import PackedBatch

NUM_POLICIES = 6
TOLERANCE = 0.02
"""Largest difference from the named gradient, relative to its norm, with which a loss agrees with its name."""
REGIMES = ("on-policy", "off-policy")


@dataclass(frozen=True, kw_only=True)
class TermAudit:
    """One term of the objective, per token: means over policies and exponents phi, but the largest bias."""

    coefficient: float
    value: float  # as a run records it, in nats except for the surrogate
    true_value: float  # of the quantity that it is named after
    gradient_norm: float  # norm of the expected gradient, without the coefficient
    bias: float  # |expected - true gradient| / |true gradient|
    noise: float  # root mean square over completions of |its gradient - expected| / |expected|
    cosines: dict[Quantity, float]  # between the expected gradient and that of each quantity


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result for one loss: which gradient it follows."""

    divergence: str
    named: Quantity | None  # the gradient that the name stands for
    nearest: Quantity | None  # the quantity whose gradient the measured one is nearest to, on-policy
    agrees: bool
    terms: dict[str, dict[str, TermAudit]]  # by regime: surrogate, divergence, entropy
    capped: dict[str, float]  # share of sampled tokens beyond each cap, off-policy
    coupling: float  # |effect of phi by reward instead of one phi| / |gradient|, on-policy


def audit(algorithm: AlgorithmConfig, reward: RewardConfig, temperature: float = 1.0) -> Audit:
    """Measure the loss of `algorithm`, in a second or two. `temperature` is the rollout's.

    Raises UserCodeError for a user's divergence that cannot be used or claims no gradient.
    """
    kind = divergence_of(algorithm.divergence)
    if kind.reference and (kind.gradient is None or kind.value is None):
        raise UserCodeError(
            f"algorithm.divergence={algorithm.divergence!r}: claims no gradient, so there is nothing to compare "
            "with; name a Divergence(gradient=..., value=..., estimate=...)."
        )
    policies = {
        regime: [
            make_policy(seed, reward, temperature, off_policy=regime == "off-policy") for seed in range(NUM_POLICIES)
        ]
        for regime in REGIMES
    }
    lab = _Lab(algorithm, reward)
    terms = {regime: lab.terms(those) for regime, those in policies.items()}
    if kind.gradient is None:
        return Audit(
            divergence=algorithm.divergence, named=None, nearest=None, agrees=True, terms=terms, capped={}, coupling=0.0
        )
    penalties = {regime: those["divergence"] for regime, those in terms.items()}
    nearest: Quantity = max(QUANTITIES, key=penalties["on-policy"].cosines.__getitem__)
    promised = REGIMES if kind.corrected or kind.exact else REGIMES[:1]
    return Audit(
        divergence=algorithm.divergence,
        named=kind.gradient,
        nearest=nearest,
        agrees=all(penalties[regime].bias <= TOLERANCE for regime in promised),
        terms=terms,
        capped=lab.capped(policies["off-policy"]),
        coupling=max(lab.coupling(policy) for policy in policies["on-policy"]),
    )


@dataclass(frozen=True)
class _Expected:
    """The expected gradient of a loss over all completions, which the engine samples."""

    gradient_SV: Tensor
    noise: float  # root mean square of |a completion's gradient - expected gradient|
    values: dict[str, float]  # of the terms of the objective, per token


@dataclass(frozen=True)
class _Lab:
    """The loss under test."""

    settings: AlgorithmConfig
    reward: RewardConfig

    def terms(self, policies: Sequence[TabularPolicy]) -> dict[str, TermAudit]:
        """Measure separately each term whose coefficient is not 0, averaged over `policies`."""
        settings = self.settings
        terms = {"surrogate": _average([self.surrogate(policy) for policy in policies])}
        if settings.alpha:
            terms["divergence"] = _average([self.penalty(policy, phi) for policy in policies for phi in self.exponents])
        if settings.beta:
            terms["entropy"] = _average([self.entropy(policy) for policy in policies])
        return terms

    @property
    def exponents(self) -> list[float]:
        """Return the reference exponents to measure at: lowest, middle, highest. Each applies to all completions."""
        lowest, highest = self.settings.phi_min, self.settings.phi_max
        return [lowest, (lowest + highest) / 2, highest] if lowest < highest else [highest]

    def surrogate(self, policy: TabularPolicy) -> TermAudit:
        """Compare the surrogate with the policy gradient of the advantage."""
        advantage_N = self.advantages(policy)
        found = self.expected(policy, advantage_N=advantage_N, alpha=0.0, beta=0.0)
        true = _Truth.of(policy, lambda policy_SV: policy.chances(policy_SV) @ advantage_N)
        return _compare(policy, found, "surrogate", true, 1.0, self.settings.phi_max)

    def penalty(self, policy: TabularPolicy, phi: float) -> TermAudit:
        """Compare the divergence with the gradient that it is named after, with one exponent `phi` at every reward."""
        kind = divergence_of(self.settings.divergence)
        assert kind.gradient is not None and kind.value is not None
        found = self.expected(policy, phi_N=torch.full_like(policy.rewards_N, phi), beta=0.0)
        true = _quantity(policy, kind.gradient, phi)
        value = _quantity(policy, kind.value, phi).value
        return _compare(policy, found, "divergence", replace(true, value=value), self.settings.alpha, phi)

    def entropy(self, policy: TabularPolicy) -> TermAudit:
        """Compare the entropy bonus with the gradient of the entropy."""
        beta, found = self.settings.beta, self.expected(policy, alpha=0.0)
        bonus = found.values["entropy_bonus"]

        def true(policy_SV: Tensor) -> Tensor:
            logp_SV = policy.log_probs(policy_SV)
            return -policy.visits() @ (logp_SV.exp() * logp_SV).sum(-1)

        found = replace(found, values={"entropy": bonus / beta})
        return _compare(policy, found, "entropy", _Truth.of(policy, true), beta, self.settings.phi_max)

    def coupling(self, policy: TabularPolicy) -> float:
        """Measure the effect of taking phi from the sampled completion: |difference| / |gradient|.

        The loss gives each token the phi that its own completion earned. An exact divergence uses that phi for the
        whole distribution. An estimate uses it only for the sampled token's part of the sum.
        """
        kind = divergence_of(self.settings.divergence)
        assert kind.gradient is not None
        phi_N = reference_exponents(policy.rewards_N, self.settings, self.reward)
        found = self.expected(policy, phi_N=phi_N, beta=0.0)
        states_T, _ = policy.path
        weight_T = policy.chances(policy.engine_SV).repeat_interleave(2)
        ref_logp_TV = policy.log_probs(policy.reference_SV[states_T], phi_N.repeat_interleave(2)[:, None])
        distance = QUANTITIES[kind.gradient]
        true = _Truth.of(
            policy, lambda policy_SV: weight_T @ distance(policy.log_probs(policy_SV)[states_T], ref_logp_TV)
        )
        return float((found.gradient_SV / self.settings.alpha - true.gradient_SV).norm() / true.gradient_SV.norm())

    def capped(self, policies: Sequence[TabularPolicy]) -> dict[str, float]:
        """Return the share of sampled tokens beyond each cap, the largest over policies and exponents."""
        found = []
        for policy in policies:
            chance_N = policy.chances(policy.engine_SV)
            for phi in self.exponents:
                batch, scores = self._scored(policy, torch.zeros_like(chance_N), torch.full_like(chance_N, phi))
                of_each = [self._loss(scores, batch.only(batch.sequence_T == n)).metrics for n in range(len(chance_N))]
                found.append(
                    {name: chance_N @ torch.stack([m[name] for m in of_each]).double() / 2 for name in _CAPPED}
                )
        return {name: max(float(shares[name]) for shares in found) for name in _CAPPED}

    def advantages(self, policy: TabularPolicy) -> Tensor:
        """Return each completion's advantage, [N], relative to a group that is the whole distribution.

        A user's function gets a group with each completion once, although they are not equally likely.
        """
        chance_N = policy.chances(policy.engine_SV)
        centred_N = policy.rewards_N - chance_N @ policy.rewards_N
        if self.settings.advantage == "mean_std":
            return centred_N / ((chance_N @ centred_N**2).sqrt() + STD_OFFSET)
        if self.settings.advantage in builtin_names.ADVANTAGES:
            return centred_N
        everyone_1N = torch.ones(1, len(centred_N), dtype=torch.bool)
        return advantage_of(self.settings.advantage)(centred_N[None], everyone_1N)[0]

    def expected(
        self,
        policy: TabularPolicy,
        *,
        advantage_N: Tensor | None = None,
        phi_N: Tensor | None = None,
        **settings: float,
    ) -> _Expected:
        """Return the loss of all completions with changed `settings`. Without `advantage_N` there is no surrogate."""
        chance_N = policy.chances(policy.engine_SV)
        advantage_N = torch.zeros_like(chance_N) if advantage_N is None else advantage_N
        phi_N = torch.full_like(chance_N, self.settings.phi_max) if phi_N is None else phi_N
        changed = replace(self, settings=self.settings.model_copy(update=settings))
        states_T, _ = policy.path
        logits_TV = policy.policy_SV[states_T].requires_grad_()
        batch, scores = changed._scored(policy, advantage_N, phi_N, logits_TV)
        sums = changed._loss(scores, batch)
        (weighted_TV,) = torch.autograd.grad(sums.loss, logits_TV)
        of_each_NSV = weighted_TV.new_zeros(len(chance_N), *policy.policy_SV.shape)
        of_each_NSV[batch.sequence_T, states_T] = weighted_TV / batch.weight_T[:, None]
        mean_SV = torch.einsum("n,nsv->sv", chance_N, of_each_NSV)
        variance = chance_N @ (of_each_NSV - mean_SV).square().sum((1, 2))
        values = {name: float(sums.metrics[name]) / 2 for name in ("surrogate", "divergence", "entropy_bonus")}
        return _Expected(gradient_SV=mean_SV, noise=float(variance.sqrt()), values=values)

    def _scored(
        self, policy: TabularPolicy, advantage_N: Tensor, phi_N: Tensor, logits_TV: Tensor | None = None
    ) -> tuple[PackedBatch, TokenScores]:
        states_T, _ = policy.path
        logits_TV = policy.policy_SV[states_T] if logits_TV is None else logits_TV
        scores = policy.scores(logits_TV, phi_N, divergence_of(self.settings.divergence).exact)
        return policy.batch(advantage_N=advantage_N, phi_N=phi_N), scores

    def _loss(self, scores: TokenScores, batch: PackedBatch) -> LossSums:
        return batch_loss(
            scores,
            batch,
            settings=self.settings,
            middle_reward=self.reward.middle,
            sequence_mean=lambda values_T, _: values_T.view(-1, 2).mean(1).repeat_interleave(2),
        )


_CAPPED = ("log_rho_capped", "importance_capped")


@dataclass(frozen=True)
class _Truth:
    """A quantity and its gradient by the policy's logits; the value is per token."""

    value: float
    gradient_SV: Tensor

    @classmethod
    def of(cls, policy: TabularPolicy, quantity: Callable[[Tensor], Tensor]) -> _Truth:
        policy_SV = policy.policy_SV.clone().requires_grad_()
        value = quantity(policy_SV)
        return cls(float(value.detach()) / 2, torch.autograd.grad(value, policy_SV)[0])


def _quantity(policy: TabularPolicy, name: Quantity, phi: float) -> _Truth:
    """Return the quantity between the policy and the reference, reweighted by one `phi` everywhere."""
    ref_logp_SV = policy.log_probs(policy.reference_SV, phi)
    return _Truth.of(
        policy, lambda policy_SV: policy.visits() @ QUANTITIES[name](policy.log_probs(policy_SV), ref_logp_SV)
    )


def _compare(
    policy: TabularPolicy, found: _Expected, name: str, true: _Truth, coefficient: float, phi: float
) -> TermAudit:
    """Compare a measured term with its true value. The loss minimises a penalty and maximises the other terms."""
    sign = 1.0 if name == "divergence" else -1.0
    gradient_SV = sign * found.gradient_SV / coefficient
    size = gradient_SV.norm()
    directions = {quantity: _quantity(policy, quantity, phi).gradient_SV for quantity in QUANTITIES}
    return TermAudit(
        coefficient=coefficient,
        value=found.values[name],
        true_value=true.value,
        gradient_norm=float(size),
        bias=float((gradient_SV - true.gradient_SV).norm() / true.gradient_SV.norm()),
        noise=found.noise / coefficient / float(size),
        cosines={
            quantity: float(torch.cosine_similarity(gradient_SV.flatten(), direction_SV.flatten(), dim=0))
            for quantity, direction_SV in directions.items()
        },
    )


def _average(terms: Sequence[TermAudit]) -> TermAudit:
    """Average all fields, but keep the largest bias."""
    fields = ("coefficient", "value", "true_value", "gradient_norm", "noise")
    return TermAudit(
        **{name: _mean([getattr(term, name) for term in terms]) for name in fields},
        bias=max(term.bias for term in terms),
        cosines={quantity: _mean([term.cosines[quantity] for term in terms]) for quantity in QUANTITIES},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
