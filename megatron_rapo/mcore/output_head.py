"""Log-probability and true entropy from last hidden states, chunk by chunk: the logits are never held whole.

T packed tokens, C of a chunk, D hidden size, V the vocabulary, Vp its part on this tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_BYTES = 256 * 2**20
"""Float32 logits of one chunk; forward and backward hold two or three such tensors at a time."""


def log_prob_and_entropy(
    hidden_TD: Tensor,
    weight_VpD: Tensor,
    targets_T: Tensor,
    scale_T: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(scale * hidden W^T)[target] and the entropy of that softmax, both [T] float32 (or wider), nats.

    `scale_T` is 1 / temperature for the policy, phi / temperature for the reference: softmax(phi * z) is
    pi_ref^phi / Z, so the reweighting's normaliser is this log-sum-exp. Rows of padding beyond `vocab_size` take no
    probability. Gradients flow to `hidden_TD` (this rank's part of the sum over the vocabulary: the caller adds up the
    tensor ranks) and to `weight_VpD`. Memory is O(chunk * Vp), by default of CHUNK_BYTES; the backward pass computes
    the logits again. The forward pass has two all-reduces a chunk over `group`, in which every rank must take part.
    """
    columns = weight_VpD.shape[0]
    first = group.rank() * columns
    real = max(0, min(columns, vocab_size - first))
    assert real > 0, f"tensor-parallel rank {group.rank()} holds only padding of a vocabulary of {vocab_size}"
    if real < columns:  # a slice costs its gradient a copy
        weight_VpD = weight_VpD[:real]
    chunk_tokens = chunk_tokens or max(1, CHUNK_BYTES // (4 * columns))
    logp_T, entropy_T = _Head.apply(hidden_TD, weight_VpD, targets_T - first, scale_T, group, chunk_tokens)
    return logp_T, entropy_T


class _Chunk(NamedTuple):
    """Which tokens, and where their targets are in this rank's part of the vocabulary."""

    rows: slice
    mine_C: Tensor  # bool: the target is on this rank
    local_C: Tensor  # its column, 0 where it is not


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VpD: Tensor,
        local_T: Tensor,
        scale_T: Tensor,
        group: dist.ProcessGroup,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden_TD.dtype, torch.float32)
        logp_T, entropy_T, lse_T = (scale_T.new_empty(scale_T.shape, dtype=exact) for _ in range(3))
        for chunk in _chunks(local_T, weight_VpD.shape[0], chunk_tokens):
            z_CVp = _scaled_logits(hidden_TD, weight_VpD, scale_T, chunk.rows, exact)
            highest_C = z_CVp.amax(-1)
            dist.all_reduce(highest_C, op=dist.ReduceOp.MAX, group=group)
            z_CVp -= highest_C[:, None]
            target_C = z_CVp.gather(1, chunk.local_C[:, None])[:, 0].masked_fill(~chunk.mine_C, 0.0)
            e_CVp = z_CVp.exp()
            sums_3C = torch.stack([e_CVp.sum(-1), z_CVp.mul_(e_CVp).sum(-1), target_C])
            dist.all_reduce(sums_3C, group=group)
            sum_C, weighted_C, target_C = sums_3C
            lse_C = sum_C.log()
            logp_T[chunk.rows] = target_C - lse_C
            entropy_T[chunk.rows] = lse_C - weighted_C / sum_C
            lse_T[chunk.rows] = lse_C + highest_C
        ctx.save_for_backward(hidden_TD, weight_VpD, local_T, scale_T, lse_T, entropy_T)
        ctx.chunk_tokens = chunk_tokens
        return logp_T, entropy_T

    @staticmethod
    def backward(ctx: Any, d_logp_T: Tensor, d_entropy_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VpD, local_T, scale_T, lse_T, entropy_T = ctx.saved_tensors
        exact = lse_T.dtype
        d_hidden_TD = torch.empty_like(hidden_TD)
        d_weight_VpD = torch.zeros_like(weight_VpD, dtype=exact)  # summed over chunks: not in bfloat16
        for chunk in _chunks(local_T, weight_VpD.shape[0], ctx.chunk_tokens):
            rows = chunk.rows
            logp_CVp = _scaled_logits(hidden_TD, weight_VpD, scale_T, rows, exact).sub_(lse_T[rows, None])
            p_CVp = logp_CVp.exp()
            # d logp / dz = 1[target] - p;  dH / dz = -p (log p + H)
            grad_CVp = logp_CVp.add_(entropy_T[rows, None]).mul_(d_entropy_T[rows, None]).add_(d_logp_T[rows, None])
            grad_CVp.mul_(p_CVp).neg_()
            grad_CVp.scatter_add_(1, chunk.local_C[:, None], (d_logp_T[rows] * chunk.mine_C)[:, None])
            grad_CVp = grad_CVp.mul_(scale_T[rows, None]).to(hidden_TD.dtype)
            torch.matmul(grad_CVp, weight_VpD, out=d_hidden_TD[rows])
            if exact == weight_VpD.dtype:
                d_weight_VpD.addmm_(grad_CVp.T, hidden_TD[rows])
            else:
                d_weight_VpD += grad_CVp.T @ hidden_TD[rows]
        return d_hidden_TD, d_weight_VpD.to(weight_VpD.dtype), None, None, None, None


def _chunks(local_T: Tensor, columns: int, chunk_tokens: int) -> Iterator[_Chunk]:
    for start in range(0, len(local_T), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        mine_C = (local_T[rows] >= 0) & (local_T[rows] < columns)
        yield _Chunk(rows, mine_C, local_T[rows].masked_fill(~mine_C, 0))


def _scaled_logits(hidden_TD: Tensor, weight_VpD: Tensor, scale_T: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """scale * hidden W^T of the rows, [C, Vp]: multiplied in the weights' dtype, as the engine does, then exact."""
    return (hidden_TD[rows] @ weight_VpD.T).to(dtype).mul_(scale_T[rows, None])
