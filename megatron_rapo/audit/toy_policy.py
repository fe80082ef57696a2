"""Define a policy small enough to enumerate all its completions, which have two tokens.

V tokens in the vocabulary, S = 1 + V states (at the start, and after each first token), N = V^2 completions. All
float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_rapo.config import RewardConfig
from megatron_rapo.scoring.output_head import ReferenceHead, TokenScores, token_scores
from megatron_rapo.scoring.packing import PackedBatch

VOCABULARY = 5
REFERENCE_DISTANCE = 1.0  # standard deviation of the reference's logits around the policy's
DRIFT = 0.10  # the same for the old policy, off-policy: like a few optimizer steps
ENGINE_NOISE = 0.02  # the same for the engine around the old policy: like other kernels or lower precision


@dataclass(frozen=True, kw_only=True)
class TabularPolicy:
    """The logits [S, V] of all distributions that a loss uses, and each completion's reward, [N]."""

    policy_SV: Tensor
    old_SV: Tensor  # when the rollout was scored
    engine_SV: Tensor  # the sampler
    reference_SV: Tensor
    rewards_N: Tensor
    temperature: float

    def log_probs(self, logits_SV: Tensor, phi: float | Tensor = 1.0) -> Tensor:
        """Return the log softmax at the sampling temperature, same shape. `phi` reweights the reference."""
        return (logits_SV * phi / self.temperature).log_softmax(-1)

    def chances(self, logits_SV: Tensor) -> Tensor:
        """Return the probability of every completion, [N]."""
        logp_SV = self.log_probs(logits_SV)
        return (logp_SV[0][:, None] + logp_SV[1:]).exp().flatten()

    def visits(self) -> Tensor:
        """Return how often a completion sampled by the engine passes each state, [S]."""
        first_V = self.log_probs(self.engine_SV)[0].exp()
        return torch.cat([first_V.new_ones(1), first_V])

    @property
    def path(self) -> tuple[Tensor, Tensor]:
        """Return the states [T] of all completions, one after another, and the tokens [T] chosen there."""
        tokens_N2 = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY))
        states_N2 = torch.stack([torch.zeros_like(tokens_N2[:, 0]), 1 + tokens_N2[:, 0]], dim=1)
        return states_N2.flatten(), tokens_N2.flatten()

    def batch(self, *, advantage_N: Tensor, phi_N: Tensor) -> PackedBatch:
        """Pack all completions, scored, like the trainer. Weight each by its probability under the engine."""
        states_T, targets_T = self.path
        phi_T = phi_N.repeat_interleave(2)
        ref_logp_TV = self.log_probs(self.reference_SV[states_T], phi_T[:, None])
        return PackedBatch(
            token_ids_T=states_T,
            targets_T=targets_T,
            position_T=torch.arange(2).repeat(len(phi_N)),
            sampled_T=torch.ones_like(targets_T, dtype=torch.bool),
            mask_T=torch.ones_like(targets_T, dtype=torch.bool),
            advantage_T=advantage_N.repeat_interleave(2),
            weight_T=self.chances(self.engine_SV).repeat_interleave(2),
            reward_T=self.rewards_N.repeat_interleave(2),
            phi_T=phi_T,
            engine_logp_T=self.log_probs(self.engine_SV)[states_T, targets_T],
            stale_T=torch.zeros_like(targets_T, dtype=torch.bool),
            sequence_T=torch.arange(len(phi_N)).repeat_interleave(2),
            cu_seqlens=torch.arange(0, 2 * len(phi_N) + 1, 2, dtype=torch.int32),
            old_logp_T=self.log_probs(self.old_SV)[states_T, targets_T],
            ref_logp_T=ref_logp_TV.gather(1, targets_T[:, None])[:, 0],
        )

    def scores(self, logits_TV: Tensor, phi_N: Tensor, exact: Literal["forward", "reverse"] | None) -> TokenScores:
        """Score all completions with the training's output head. The policy's logits replace hidden states."""
        states_T, targets_T = self.path
        head = torch.eye(VOCABULARY, dtype=torch.float64)
        scale_T = torch.full(targets_T.shape, 1 / self.temperature, dtype=torch.float64)
        reference = None
        if exact:
            reference = ReferenceHead(
                hidden_TD=self.reference_SV[states_T],
                weight_VpD=head,
                scale_T=scale_T * phi_N.repeat_interleave(2),
                direction=exact,
            )
        return token_scores(logits_TV, head, targets_T, scale_T, vocab_size=VOCABULARY, reference=reference)


def make_policy(seed: int, reward: RewardConfig, temperature: float, *, off_policy: bool) -> TabularPolicy:
    """Make a random policy. On-policy, engine and old policy equal it. A third of the completions is right."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        # Times the temperature that logits are divided by, so the policy is the same at every temperature.
        return scale * temperature * torch.randn(1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    policy_SV = normal(1.0)
    reference_SV = policy_SV + normal(REFERENCE_DISTANCE)
    drift_SV, noise_SV = normal(DRIFT), normal(ENGINE_NOISE)
    right_N = torch.rand(VOCABULARY**2, generator=generator) < 1 / 3
    old_SV = policy_SV + drift_SV if off_policy else policy_SV
    lowest, highest = reward.range
    return TabularPolicy(
        policy_SV=policy_SV,
        old_SV=old_SV,
        engine_SV=old_SV + noise_SV if off_policy else old_SV,
        reference_SV=reference_SV,
        rewards_N=torch.where(right_N, highest, lowest).double(),
        temperature=temperature,
    )
