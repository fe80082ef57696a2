"""Compute each token's scores from the last hidden states, chunk by chunk. Never hold all logits.

The scores are the log-probability of the token, the entropy of the policy and, with the hidden states of a reference,
the exact KL divergence over the vocabulary. T packed tokens, C of a chunk, D hidden size, V the vocabulary, Vp its part
on this tensor-parallel rank. Sums over the vocabulary are over all ranks. The backward pass computes the logits again.
Only without a reference it reuses those of the last chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_BYTES = 128 * 2**20
"""Size of one chunk's logits in float32. Two such tensors exist at a time, three with a reference
(benchmarks/README.md)."""


class TokenScores(NamedTuple):
    """Scores of each token's distribution, [T] float32 (or wider), nats, differentiable."""

    logp_T: Tensor  # log-probability of the target
    entropy_T: Tensor
    kl_T: Tensor | None  # divergence from the reference; None without one


@dataclass(frozen=True, kw_only=True)
class ReferenceHead:
    """The reweighted reference pihat = softmax(scale * hidden W^T), from its own hidden states and output layer."""

    hidden_TD: Tensor
    weight_VpD: Tensor
    scale_T: Tensor  # phi / temperature
    direction: Literal["forward", "reverse"]  # KL(pihat || pi) or KL(pi || pihat)

    def logits(self, rows: slice, out_CVp: Tensor) -> _Logits:
        return _Logits.of(self.hidden_TD, self.weight_VpD, self.scale_T, rows, out_CVp)


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
    """Score tokens under softmax(scale * hidden W^T). `group` splits the vocabulary (None: this process has it all).

    `scale_T` (>= 0) is 1 / temperature for the policy and phi / temperature for the reference: softmax(phi * z) is
    pi_ref^phi / Z, so this log-sum-exp is log Z. Padding rows beyond `vocab_size` get no probability. Gradients flow to
    `weight_VpD` and `hidden_TD`, not to the reference. Each rank has the gradient of its part of the vocabulary; the
    caller sums that of `hidden_TD` over the tensor ranks. Memory is O(chunk * Vp), by default CHUNK_BYTES, and in the
    backward pass also the weight's gradient in float32. The forward pass has two all-reduces per chunk over `group`.
    Every rank must take part.
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
    if real < columns:  # do not slice otherwise: it would copy the weight's gradient
        weight_VpD = weight_VpD[:real]
        reference = reference and replace(reference, weight_VpD=reference.weight_VpD[:real])
    return TokenScores(*_Head.apply(hidden_TD, weight_VpD, targets_T, scale_T, reference, shard))


@dataclass(frozen=True)
class _Shard:
    """This rank's columns of the vocabulary, the group with the other columns, and the tokens of a chunk."""

    first: int
    columns: int
    group: dist.ProcessGroup | None
    chunk_tokens: int

    def reduce(self, *values_C: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce each value over the ranks. Return them stacked."""
        stacked = torch.stack(values_C)
        if self.group is not None:
            dist.all_reduce(stacked, op=op, group=self.group)
        return stacked

    def rows(self, num_tokens: int) -> int:
        """Return the rows of a chunk. All chunks have the same size, except the last."""
        count = max(1, -(-num_tokens // self.chunk_tokens))
        return -(-num_tokens // count)

    def buffer(self, targets_T: Tensor, dtype: torch.dtype) -> Tensor:
        """Allocate memory for the logits of a chunk."""
        return targets_T.new_empty(self.rows(len(targets_T)), self.columns, dtype=dtype)

    def chunks(self, targets_T: Tensor, *buffers: Tensor) -> list[_Chunk]:
        """Split the tokens into chunks that share memory. On a CPU, new pages cost more than the arithmetic in them."""
        local_T, size = targets_T - self.first, self.rows(len(targets_T))
        found = []
        for start in range(0, len(local_T), size):
            rows = slice(start, start + size)
            mine_C = (local_T[rows] >= 0) & (local_T[rows] < self.columns)
            column_C1 = local_T[rows].masked_fill(~mine_C, 0)[:, None]
            found.append(_Chunk(rows, mine_C, column_C1, [buffer[: len(mine_C)] for buffer in buffers]))
        return found


class _Chunk(NamedTuple):
    """Some tokens, the places of their targets in this rank's part of the vocabulary, and memory for their logits."""

    rows: slice
    mine_C: Tensor  # bool: the target is on this rank
    column_C1: Tensor  # the target's column, or 0 if it is on another rank
    buffers: list[Tensor]  # [C, Vp], with old content of the previous chunk


class _Logits(NamedTuple):
    """Logits scale * product, [C, Vp]. The multiplication is delayed, to do it in one pass with a subtraction."""

    product_CVp: Tensor  # hidden W^T in the weight's dtype, as in the engine; in out's memory if out has that dtype
    scale_C: Tensor
    out_CVp: Tensor

    @classmethod
    def of(cls, hidden_TD: Tensor, weight_VpD: Tensor, scale_T: Tensor, rows: slice, out_CVp: Tensor) -> _Logits:
        out = out_CVp if out_CVp.dtype == weight_VpD.dtype else None
        return cls(torch.matmul(hidden_TD[rows], weight_VpD.T, out=out), scale_T[rows], out_CVp)

    def max(self) -> Tensor:
        return self.product_CVp.amax(-1) * self.scale_C

    def minus(self, shift_C: Tensor) -> Tensor:
        """Subtract `shift_C` from the scaled product. Write into `out_CVp`, in its dtype."""
        return torch.addcmul(-shift_C[:, None], self.product_CVp, self.scale_C[:, None], out=self.out_CVp)


class _LastChunk(NamedTuple):
    """Results of a forward pass for the chunk that a backward pass begins with. A second one gets the same bits."""

    memory: Tensor | None  # logits minus `highest_C`; None after a backward pass has overwritten them
    highest_C: Tensor
    log_sum_C: Tensor


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
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        logp_T, entropy_T, lse_T, kl_T, ref_lse_T = (scale_T.new_empty(scale_T.shape, dtype=wide) for _ in range(5))
        memory = [shard.buffer(targets_T, wide) for _ in range(2 if reference is None else 3)]
        for chunk in shard.chunks(targets_T, *memory):
            rows, (free_CVp, *buffers) = chunk.rows, chunk.buffers
            logits = [_Logits.of(hidden_TD, weight_VpD, scale_T, rows, buffers[0])]
            if reference is not None:
                logits.append(reference.logits(rows, buffers[1]))
            highest = shard.reduce(*(each.max() for each in logits), op=dist.ReduceOp.MAX)
            z_CVp, *ref_z = (each.minus(highest_C) for each, highest_C in zip(logits, highest, strict=True))
            target_C = z_CVp.gather(1, chunk.column_C1)[:, 0].masked_fill(~chunk.mine_C, 0.0)
            sum_C = torch.exp(z_CVp, out=free_CVp).sum(-1)
            weighted_C = free_CVp.mul_(z_CVp).sum(-1)
            kl_sums = [] if reference is None else _kl_sums(z_CVp, ref_z[0], free_CVp, reference.direction)
            sum_C, target_C, weighted_C, *kl_sums = shard.reduce(sum_C, target_C, weighted_C, *kl_sums)
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
        ctx.last = _LastChunk(memory[1], highest[0], log_sum_C) if reference is None else None
        ctx.set_materialize_grads(False)  # an output that the loss does not use has no gradient and costs nothing
        return logp_T, entropy_T, None if reference is None else kl_T

    @staticmethod
    def backward(ctx: Any, *d_outputs_T: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute gradients by the logits z, with p = softmax(z):

        d logp / dz = 1[target] - p               d KL(pihat || pi) / dz = p - pihat
        d H / dz = -p (log p + H)                 d KL(pi || pihat) / dz = p (log p - log pihat - KL)
        """
        hidden_TD, weight_VpD, targets_T, scale_T, lse_T, entropy_T, kl_T, ref_lse_T = ctx.saved_tensors
        reference, wide = ctx.reference, lse_T.dtype
        # d z / d (hidden W^T) = scale. Multiply the scale here, once per token, instead of once per logit later.
        d_logp_T, d_entropy_T, d_kl_T = (None if d_T is None else d_T * scale_T for d_T in d_outputs_T)
        is_forward = reference is not None and reference.direction == "forward"
        d_forward_T, d_reverse_T = (d_kl_T, None) if is_forward else (None, d_kl_T)
        of_p_T = torch.zeros_like(lse_T)  # the factor of p, without the terms with a logarithm
        if d_logp_T is not None:
            of_p_T -= d_logp_T
        if d_entropy_T is not None:
            of_p_T -= d_entropy_T * entropy_T
        if d_forward_T is not None:
            of_p_T += d_forward_T
        if d_reverse_T is not None:
            of_p_T -= d_reverse_T * kl_T
        d_hidden_TD = torch.empty_like(hidden_TD)
        d_weight_VpD = torch.zeros_like(weight_VpD, dtype=wide)  # a sum over chunks would lose digits in bfloat16
        last = ctx.last
        memory_of_z = ctx.shard.buffer(targets_T, wide) if last is None or last.memory is None else last.memory
        for chunk in reversed(ctx.shard.chunks(targets_T, memory_of_z, ctx.shard.buffer(targets_T, wide))):
            rows, (z_CVp, free_CVp) = chunk.rows, chunk.buffers
            if last is None or last.memory is None:
                shift_C = lse_T[rows] if last is None else last.highest_C
                logp_CVp = _Logits.of(hidden_TD, weight_VpD, scale_T, rows, z_CVp).minus(shift_C)
            else:
                logp_CVp = z_CVp
            if last is not None:
                logp_CVp.sub_(last.log_sum_C[:, None])
                ctx.last = last._replace(memory=None)
                last = None
            factor_CVp = of_p_T[rows, None]
            if d_reverse_T is not None:
                ref_logp_CVp = reference.logits(rows, free_CVp).minus(ref_lse_T[rows])
                log_ratio_CVp = torch.sub(logp_CVp, ref_logp_CVp, out=free_CVp)
                factor_CVp = log_ratio_CVp.mul_(d_reverse_T[rows, None]).add_(factor_CVp)
            if d_entropy_T is not None:
                factor_CVp = torch.addcmul(factor_CVp, logp_CVp, d_entropy_T[rows, None], value=-1, out=free_CVp)
            grad_CVp = logp_CVp.exp_().mul_(factor_CVp)
            if d_forward_T is not None:
                pihat_CVp = reference.logits(rows, free_CVp).minus(ref_lse_T[rows]).exp_()
                grad_CVp.sub_(pihat_CVp.mul_(d_forward_T[rows, None]))  # same rounding as p: exactly 0 at the reference
            if d_logp_T is not None:
                grad_CVp.scatter_add_(1, chunk.column_C1, (d_logp_T[rows] * chunk.mine_C)[:, None])
            grad_CVp = grad_CVp.to(hidden_TD.dtype)
            torch.matmul(grad_CVp, weight_VpD, out=d_hidden_TD[rows])
            if wide == weight_VpD.dtype:
                d_weight_VpD.addmm_(grad_CVp.T, hidden_TD[rows])
            else:
                d_weight_VpD += grad_CVp.T @ hidden_TD[rows]
        return d_hidden_TD, d_weight_VpD.to(weight_VpD.dtype), None, None, None, None


def _kl_sums(z_CVp: Tensor, ref_z_CVp: Tensor, free_CVp: Tensor, direction: str) -> list[Tensor]:
    """Return this rank's sums of exp(ref_z) and of the log-ratio weighted by the KL's distribution, each [C].

    Logits may be shifted by a constant per row. May overwrite all three tensors. Differences are taken before sums:
    near the reference they are small, so their sum stays exact.
    """
    if direction == "forward":
        log_ratio_CVp, e_CVp = torch.sub(ref_z_CVp, z_CVp, out=free_CVp), ref_z_CVp.exp_()
        ref_sum_C = e_CVp.sum(-1)
    else:
        log_ratio_CVp, e_CVp = torch.sub(z_CVp, ref_z_CVp, out=free_CVp), z_CVp.exp_()
        ref_sum_C = ref_z_CVp.exp_().sum(-1)
    return [ref_sum_C, log_ratio_CVp.mul_(e_CVp).sum(-1)]
