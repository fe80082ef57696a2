"""From last hidden states to what the loss needs of each token, chunk by chunk: the logits are never held whole.

Log-probability of the token, entropy of the policy and, against a reference's hidden states, the exact KL divergence
over the vocabulary. T packed tokens, C of a chunk, D hidden size, V the vocabulary, Vp its part on this tensor-parallel
rank. Sums over the vocabulary are taken over all ranks; the backward pass computes the logits again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Float32 logits of one chunk; at most six such tensors live at a time, four without a reference."""


class TokenScores(NamedTuple):
    """Of each token's distribution, [T] float32 (or wider), nats, differentiable."""

    logp_T: Tensor  # log-probability of the target
    entropy_T: Tensor
    kl_T: Tensor | None  # divergence from the reference; None without one


@dataclass(frozen=True, kw_only=True)
class ReferenceHead:
    """The reweighted reference, as its own output layer would make it: pihat = softmax(scale * hidden W^T)."""

    hidden_TD: Tensor
    weight_VpD: Tensor
    scale_T: Tensor  # phi / temperature
    direction: Literal["forward", "reverse"]  # KL(pihat || pi) or KL(pi || pihat)

    def logits(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """[C, Vp] of the rows, scaled."""
        return _scaled_logits(self.hidden_TD, self.weight_VpD, self.scale_T, rows, dtype)


def token_scores(
    hidden_TD: Tensor,
    weight_VpD: Tensor,
    targets_T: Tensor,
    scale_T: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    reference: ReferenceHead | None = None,
    chunk_tokens: int | None = None,
) -> TokenScores:
    """Scores of softmax(scale * hidden W^T), whose vocabulary is split over `group` (None: this process has it all).

    `scale_T` is 1 / temperature for the policy, phi / temperature for the reference: softmax(phi * z) is
    pi_ref^phi / Z, so the reweighting's normaliser is this log-sum-exp. Rows of padding beyond `vocab_size` take no
    probability. Gradients flow to `hidden_TD` (this rank's part of the sum over the vocabulary: the caller adds up the
    tensor ranks) and to `weight_VpD`, and not to the reference. Memory is O(chunk * Vp), by default of CHUNK_BYTES.
    The forward pass has two all-reduces a chunk over `group`, in which every rank must take part.
    """
    columns, rank = weight_VpD.shape[0], group.rank() if group else 0
    real = max(0, min(columns, vocab_size - rank * columns))
    assert real > 0, f"tensor-parallel rank {rank} holds only padding of a vocabulary of {vocab_size}"
    shard = _Shard(
        first=rank * columns,
        columns=real,
        group=group,
        chunk_tokens=chunk_tokens or max(1, CHUNK_BYTES // (4 * columns)),
    )
    if real < columns:  # only then: a slice costs the weight's gradient a copy
        weight_VpD = weight_VpD[:real]
        reference = reference and replace(reference, weight_VpD=reference.weight_VpD[:real])
    return TokenScores(*_Head.apply(hidden_TD, weight_VpD, targets_T, scale_T, reference, shard))


@dataclass(frozen=True)
class _Shard:
    """This rank's columns of the vocabulary, who has the others, and how many tokens to take at a time."""

    first: int
    columns: int
    group: dist.ProcessGroup | None
    chunk_tokens: int

    def sum(self, *values_C: Tensor) -> Tensor:
        """Each summed over the ranks, stacked."""
        stacked = torch.stack(values_C)
        if self.group is not None:
            dist.all_reduce(stacked, group=self.group)
        return stacked

    def max(self, *values_C: Tensor) -> Tensor:
        """The largest of each over the ranks, stacked."""
        stacked = torch.stack(values_C)
        if self.group is not None:
            dist.all_reduce(stacked, op=dist.ReduceOp.MAX, group=self.group)
        return stacked

    def chunks(self, targets_T: Tensor) -> Iterator[_Chunk]:
        local_T = targets_T - self.first
        for start in range(0, len(local_T), self.chunk_tokens):
            rows = slice(start, start + self.chunk_tokens)
            mine_C = (local_T[rows] >= 0) & (local_T[rows] < self.columns)
            yield _Chunk(rows, mine_C, local_T[rows].masked_fill(~mine_C, 0)[:, None])


class _Chunk(NamedTuple):
    """Which tokens, and where their targets are in this rank's part of the vocabulary."""

    rows: slice
    mine_C: Tensor  # bool: the target is on this rank
    column_C1: Tensor  # its column, 0 where it is not


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VpD: Tensor,
        targets_T: Tensor,
        scale_T: Tensor,
        reference: ReferenceHead | None,
        shard: _Shard,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        exact = torch.promote_types(hidden_TD.dtype, torch.float32)
        logp_T, entropy_T, lse_T, kl_T, ref_lse_T = (scale_T.new_empty(scale_T.shape, dtype=exact) for _ in range(5))
        for chunk in shard.chunks(targets_T):
            rows = chunk.rows
            logits = [_scaled_logits(hidden_TD, weight_VpD, scale_T, rows, exact)]
            if reference is not None:
                logits.append(reference.logits(rows, exact))
            highest = shard.max(*(z_CVp.amax(-1) for z_CVp in logits))
            for z_CVp, highest_C in zip(logits, highest, strict=True):
                z_CVp -= highest_C[:, None]
            z_CVp, e_CVp = logits[0], logits[0].exp()
            target_C = z_CVp.gather(1, chunk.column_C1)[:, 0].masked_fill(~chunk.mine_C, 0.0)
            kl_sums = [] if reference is None else _kl_sums(z_CVp, e_CVp, logits[1], reference.direction)
            sum_C, target_C, weighted_C, *kl_sums = shard.sum(
                e_CVp.sum(-1), target_C, z_CVp.mul_(e_CVp).sum(-1), *kl_sums
            )
            log_sum_C = sum_C.log()
            logp_T[rows] = target_C - log_sum_C
            entropy_T[rows] = log_sum_C - weighted_C / sum_C
            lse_T[rows] = log_sum_C + highest[0]
            if reference is not None:
                ref_sum_C, cross_C = kl_sums
                ref_log_sum_C = ref_sum_C.log()
                ref_lse_T[rows] = ref_log_sum_C + highest[1]
                forward_C = cross_C / ref_sum_C - ref_log_sum_C + log_sum_C
                reverse_C = cross_C / sum_C - log_sum_C + ref_log_sum_C
                kl_T[rows] = forward_C if reference.direction == "forward" else reverse_C
        ctx.save_for_backward(hidden_TD, weight_VpD, targets_T, scale_T, lse_T, entropy_T, kl_T, ref_lse_T)
        ctx.reference, ctx.shard = reference, shard
        return logp_T, entropy_T, None if reference is None else kl_T

    @staticmethod
    def backward(ctx: Any, d_logp_T: Tensor, d_entropy_T: Tensor, d_kl_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VpD, targets_T, scale_T, lse_T, entropy_T, kl_T, ref_lse_T = ctx.saved_tensors
        reference, exact = ctx.reference, lse_T.dtype
        d_hidden_TD = torch.empty_like(hidden_TD)
        d_weight_VpD = torch.zeros_like(weight_VpD, dtype=exact)  # summed over chunks: not in bfloat16
        for chunk in ctx.shard.chunks(targets_T):
            rows = chunk.rows
            logp_CVp = _scaled_logits(hidden_TD, weight_VpD, scale_T, rows, exact).sub_(lse_T[rows, None])
            if reference is None:
                grad_CVp = _gradient(logp_CVp, entropy_T[rows], d_logp_T[rows], d_entropy_T[rows])
            else:
                assert d_kl_T is not None
                ref_logp_CVp = reference.logits(rows, exact).sub_(ref_lse_T[rows, None])
                add_kl = _with_forward_kl if reference.direction == "forward" else _with_reverse_kl
                grad_CVp = add_kl(
                    logp_CVp, ref_logp_CVp, entropy_T[rows], kl_T[rows], d_logp_T[rows], d_entropy_T[rows], d_kl_T[rows]
                )
            grad_CVp.scatter_add_(1, chunk.column_C1, (d_logp_T[rows] * chunk.mine_C)[:, None])
            grad_CVp = grad_CVp.mul_(scale_T[rows, None]).to(hidden_TD.dtype)
            torch.matmul(grad_CVp, weight_VpD, out=d_hidden_TD[rows])
            if exact == weight_VpD.dtype:
                d_weight_VpD.addmm_(grad_CVp.T, hidden_TD[rows])
            else:
                d_weight_VpD += grad_CVp.T @ hidden_TD[rows]
        return d_hidden_TD, d_weight_VpD.to(weight_VpD.dtype), None, None, None, None


# Gradients by the scaled logits but for the 1 at each target, which is added afterwards; all [C, Vp], in the memory of
# their first arguments.   d logp / dz = 1[target] - p     d H / dz = -p (log p + H)


def _gradient(logp_CVp: Tensor, entropy_C: Tensor, d_logp_C: Tensor, d_entropy_C: Tensor) -> Tensor:
    p_CVp = logp_CVp.exp()
    of_one_C = d_logp_C + d_entropy_C * entropy_C
    return logp_CVp.mul_(-d_entropy_C[:, None]).sub_(of_one_C[:, None]).mul_(p_CVp)


def _with_forward_kl(
    logp_CVp: Tensor,
    ref_logp_CVp: Tensor,
    entropy_C: Tensor,
    kl_C: Tensor,
    d_logp_C: Tensor,
    d_entropy_C: Tensor,
    d_kl_C: Tensor,
) -> Tensor:
    """d KL(pihat || pi) / dz = p - pihat."""
    grad_CVp = _gradient(logp_CVp, entropy_C, d_logp_C - d_kl_C, d_entropy_C)
    return grad_CVp.sub_(ref_logp_CVp.exp_().mul_(d_kl_C[:, None]))


def _with_reverse_kl(
    logp_CVp: Tensor,
    ref_logp_CVp: Tensor,
    entropy_C: Tensor,
    kl_C: Tensor,
    d_logp_C: Tensor,
    d_entropy_C: Tensor,
    d_kl_C: Tensor,
) -> Tensor:
    """d KL(pi || pihat) / dz = p (log p - log pihat - KL)."""
    p_CVp = logp_CVp.exp()
    of_one_C = d_logp_C + d_entropy_C * entropy_C + d_kl_C * kl_C
    grad_CVp = logp_CVp.mul_((d_kl_C - d_entropy_C)[:, None]).sub_(of_one_C[:, None])
    return grad_CVp.sub_(ref_logp_CVp.mul_(d_kl_C[:, None])).mul_(p_CVp)


def _kl_sums(z_CVp: Tensor, e_CVp: Tensor, ref_z_CVp: Tensor, direction: str) -> list[Tensor]:
    """This rank's sum of exp(ref_z) and of the log-ratio under the distribution that the KL averages over, each [C].

    Logits are given up to a constant of each row, e = exp(z). Takes ref_z's memory. Differences are taken before sums:
    near the reference they are small, and what they add up to is exact.
    """
    ref_e_CVp = ref_z_CVp.exp()
    ref_sum_C = ref_e_CVp.sum(-1)
    if direction == "forward":
        return [ref_sum_C, ref_z_CVp.sub_(z_CVp).mul_(ref_e_CVp).sum(-1)]
    return [ref_sum_C, ref_z_CVp.neg_().add_(z_CVp).mul_(e_CVp).sum(-1)]


def _scaled_logits(hidden_TD: Tensor, weight_VpD: Tensor, scale_T: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """scale * hidden W^T of the rows, [C, Vp]: multiplied in the weights' dtype, as the engine does, then exact."""
    return (hidden_TD[rows] @ weight_VpD.T).to(dtype).mul_(scale_T[rows, None])
