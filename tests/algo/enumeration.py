"""Define a policy over V = 6 tokens in fp64. Its parameters are the logits. Expectations are sums over the vocabulary.

The loss under test is the training's own, from logits through the output head to `rapo_loss`. Its expectation over the
engine's samples is the loss of all V tokens at once, each weighted by the engine's probability of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_rapo.algo import DIVERGENCES, LossInputs, LossSettings, LossSums, rapo_loss
from megatron_rapo.scoring.output_head import ReferenceHead, TokenScores, token_scores

V = 6
NO_CAP = 1e9
UNTRUNCATED: dict[str, Any] = {"importance_cap": NO_CAP, "log_rho_cap": NO_CAP, "clip_low": 0.2, "clip_high": 0.3}


@dataclass(frozen=True, kw_only=True)
class TabularPolicy:
    """The logits of the policy, and the log-probabilities of the other distributions, in one state."""

    logits_V: Tensor
    ref_logits_V: Tensor
    phi: float
    ref_logp_V: Tensor  # of pihat_ref = pi_ref^phi / Z, with Z summed out
    old_logp_V: Tensor
    engine_logp_V: Tensor
    advantage_V: Tensor

    def scores(self, logits_V: Tensor, direction: Any = None) -> TokenScores:
        """Return the output head's scores of each token of the vocabulary. The hidden states are the logits."""
        reference = direction and ReferenceHead(
            hidden_TD=self.ref_logits_V.repeat(V, 1),
            weight_VpD=torch.eye(V, dtype=torch.float64),
            scale_T=torch.full((V,), self.phi, dtype=torch.float64),
            direction=direction,
        )
        eye, ones_V = torch.eye(V, dtype=torch.float64), torch.ones(V, dtype=torch.float64)
        return token_scores(logits_V.repeat(V, 1), eye, torch.arange(V), ones_V, vocab_size=V, reference=reference)

    def expected_loss(
        self, logits_V: Tensor, divergence: str, *, alpha: float, beta: float, **settings: Any
    ) -> LossSums:
        """Return the expectation over the engine's samples of the loss, and of its weighted metrics per token."""
        inputs = LossInputs(
            **self.scores(logits_V, DIVERGENCES[divergence].exact)._asdict(),
            old_logp_T=self.old_logp_V,
            ref_logp_T=self.ref_logp_V,
            engine_logp_T=self.engine_logp_V,
            advantage_T=self.advantage_V,
            weight_T=self.engine_logp_V.exp(),
            mask_T=torch.ones(V).bool(),
        )
        limits = UNTRUNCATED | settings
        return rapo_loss(inputs, LossSettings(divergence=divergence, alpha=alpha, beta=beta, **limits))

    def expected_gradient(self, divergence: str, **settings: Any) -> Tensor:
        """Return the gradient of the expected loss by the policy's logits."""
        logits_V = self.logits_V.clone().requires_grad_()
        return torch.autograd.grad(self.expected_loss(logits_V, divergence, **settings).loss, logits_V)[0]


def make_world(seed: int, phi: float, *, old_noise: float = 0.0, engine_noise: float = 0.0) -> TabularPolicy:
    """Build random distributions. Without noise, old policy and engine are equal to the policy."""
    generator = torch.Generator().manual_seed(seed)
    logits_V, ref_V, advantage_V, old_V, engine_V = torch.randn(5, V, dtype=torch.float64, generator=generator)
    reweighted_V = ref_V.softmax(0) ** phi
    return TabularPolicy(
        logits_V=logits_V,
        ref_logits_V=ref_V,
        phi=phi,
        ref_logp_V=(reweighted_V / reweighted_V.sum()).log(),
        old_logp_V=(logits_V + old_noise * old_V).log_softmax(0),
        engine_logp_V=(logits_V + old_noise * old_V + engine_noise * engine_V).log_softmax(0),
        advantage_V=advantage_V,
    )
