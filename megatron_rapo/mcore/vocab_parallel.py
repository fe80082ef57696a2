"""Log-probability and true entropy from logits that are split over the vocabulary.

T tokens, V the vocabulary, Vp its part on this tensor-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def log_prob_and_entropy(
    logits_TVp: Tensor, targets_T: Tensor, scale_T: Tensor, *, vocab_size: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """log softmax(scale * logits)[target] and the entropy of that softmax, both [T] float32 (or wider), nats.

    `scale_T` is 1 / temperature for the policy, phi / temperature for the reference: softmax(phi * z) is
    pi_ref^phi / Z, so the reweighting's normaliser is this log-sum-exp. Rows of padding beyond `vocab_size` take no
    probability. Gradients flow to the logits. Two all-reduces over `group`, in which every rank must take part.
    """
    columns = logits_TVp.shape[-1]
    first = group.rank() * columns
    real = max(0, min(columns, vocab_size - first))
    assert real > 0, f"tensor-parallel rank {group.rank()} holds only padding of a vocabulary of {vocab_size}"
    if real < columns:  # a slice costs its gradient a copy
        logits_TVp = logits_TVp[:, :real]
    logp_T, entropy_T = _LogProbAndEntropy.apply(logits_TVp, targets_T - first, scale_T, group)
    return logp_T, entropy_T


class _LogProbAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TVp: Tensor, local_T: Tensor, scale_T: Tensor, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(logits_TVp.dtype, torch.float32)
        z_TVp = logits_TVp.to(exact) * scale_T[:, None]
        highest_T = z_TVp.amax(-1)
        dist.all_reduce(highest_T, op=dist.ReduceOp.MAX, group=group)
        z_TVp -= highest_T[:, None]
        mine_T = (local_T >= 0) & (local_T < z_TVp.shape[1])
        local_T = local_T.masked_fill(~mine_T, 0)
        target_T = z_TVp.gather(1, local_T[:, None])[:, 0].masked_fill(~mine_T, 0.0)
        e_TVp = z_TVp.exp()
        sums_3T = torch.stack([e_TVp.sum(-1), (e_TVp * z_TVp).sum(-1), target_T])
        dist.all_reduce(sums_3T, group=group)
        sum_T, weighted_T, target_T = sums_3T
        lse_T = sum_T.log()
        entropy_T = lse_T - weighted_T / sum_T
        ctx.save_for_backward(z_TVp - lse_T[:, None], entropy_T, mine_T, local_T, scale_T)
        ctx.dtype = logits_TVp.dtype
        return target_T - lse_T, entropy_T

    @staticmethod
    def backward(ctx: Any, d_logp_T: Tensor, d_entropy_T: Tensor) -> tuple[Tensor, None, None, None]:
        logp_TVp, entropy_T, mine_T, local_T, scale_T = ctx.saved_tensors
        p_TVp = logp_TVp.exp()
        # d logp / dz = 1[target] - p;  dH / dz = -p (log p + H)
        grad_TVp = -p_TVp * (d_logp_T[:, None] + d_entropy_T[:, None] * (logp_TVp + entropy_T[:, None]))
        grad_TVp.scatter_add_(1, local_T[:, None], (d_logp_T * mine_T)[:, None])
        return (grad_TVp * scale_T[:, None]).to(ctx.dtype), None, None, None
