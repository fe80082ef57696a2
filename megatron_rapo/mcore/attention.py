"""Causal attention within each packed sequence, by torch's scaled_dot_product_attention, and the rotation before it.

T packed tokens on this rank, H heads, Hkv of them of keys and values, D head size; S sequences of L tokens in a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_rapo.packing import PackedBatch, context_chunks


def sequences_for_transformer_engine(batch: PackedBatch) -> PackedSeqParams:
    """What Transformer Engine's attention and rotation are told of a micro-batch."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


@dataclass
class TorchSequences(PackedSeqParams):
    """What every layer's attention is told of a micro-batch. (Megatron hands its PackedSeqParams down unseen.)"""

    runs: tuple[tuple[int, int], ...] = ()  # (S, L) of the unsplit micro-batch: equally long neighbours are one run
    cos_T1D: Tensor | None = None  # of each token's position
    sin_T1D: Tensor | None = None  # with the signs of the rotation
    order_T: Tensor | None = None  # with context parallelism: where each of its tokens is among what ranks gathered


@dataclass(frozen=True, kw_only=True)
class SequencesForTorch:
    """Makes them: rotary embeddings and borders are worked out once for all layers."""

    frequencies: Tensor  # [D / 2], radians a position
    dtype: torch.dtype
    context_size: int

    @classmethod
    def of(cls, *, head_dim: int, rope_theta: float, dtype: torch.dtype, context_size: int) -> SequencesForTorch:
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        return cls(frequencies=1.0 / rope_theta**exponents, dtype=dtype, context_size=context_size)

    def __call__(self, batch: PackedBatch) -> TorchSequences:
        angle_T1 = torch.outer(batch.position_T.float(), self.frequencies.to(batch.position_T.device))[:, None]
        cos, sin = angle_T1.cos().to(self.dtype), angle_T1.sin().to(self.dtype)
        order_T = None
        if self.context_size > 1:
            order_T = torch.argsort(context_chunks(batch.cu_seqlens, self.context_size).flatten())
        return TorchSequences(
            qkv_format="thd",
            runs=tuple((len(list(run)), length) for length, run in groupby(batch.cu_seqlens.diff().tolist())),
            cos_T1D=torch.cat([cos, cos], -1),
            sin_T1D=torch.cat([-sin, sin], -1),
            order_T=order_T,
        )


class PackedAttention(MegatronModule):
    """Rotary positions and causal attention within each packed sequence (thd).

    One call for each run of sequences of a length, which are rows side by side as they are: nothing is padded or
    copied. With context parallelism the keys and values of all ranks are gathered, and each of this rank's two chunks
    of a sequence attends to those up to its end.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *_args: Any,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_kwargs: Any,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
        self._context_group: dist.ProcessGroup = groups.cp
        self._scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None = None,
        *,
        packed_seq_params: TorchSequences,
        **_kwargs: Any,
    ) -> Tensor:
        """[T, H, D] queries, [T, Hkv, D] keys and values, not yet rotated -> [T, 1, H * D]."""
        sequences, group = packed_seq_params, self._context_group
        query, key = (_Rotated.apply(t, sequences.cos_T1D, sequences.sin_T1D) for t in (query, key))
        value = value.contiguous()  # else it keeps all that it is a view of, queries and keys, for the backward pass
        if group.size() > 1:
            key, value = (_AllGather.apply(t, group)[sequences.order_T] for t in (key, value))
        outs = [
            self._attend(query_SLHD, key_SLHD, value_SLHD)
            for query_SLHD, key_SLHD, value_SLHD in zip(
                _rows(query, sequences.runs, group.size()),
                _rows(key, sequences.runs),
                _rows(value, sequences.runs),
                strict=True,
            )
        ]
        return torch.cat(outs)[:, None]

    def _attend(self, query_SLHD: Tensor, key_SLHD: Tensor, value_SLHD: Tensor) -> Tensor:
        """Of one run, [S * L, H * D]."""
        rank, size = self._context_group.rank(), self._context_group.size()
        if size == 1:
            return self._causal(query_SLHD, key_SLHD, value_SLHD).flatten(0, 1)
        chunk = key_SLHD.shape[1] // (2 * size)
        ends = [(c + 1) * chunk for c in (rank, 2 * size - 1 - rank)]
        parts = [
            self._causal(chunk_SLHD, key_SLHD[:, :end], value_SLHD[:, :end])
            for chunk_SLHD, end in zip(query_SLHD.chunk(2, dim=1), ends, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def _causal(self, query_SLHD: Tensor, key_SLHD: Tensor, value_SLHD: Tensor) -> Tensor:
        """Where the last query is at the last key, [S, L, H * D]."""
        num_queries, num_keys = query_SLHD.shape[1], key_SLHD.shape[1]
        mask = None
        if num_queries < num_keys:
            mask = query_SLHD.new_ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
        out_SHLD = F.scaled_dot_product_attention(
            query_SLHD.transpose(1, 2),
            key_SLHD.transpose(1, 2),
            value_SLHD.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=key_SLHD.shape[2] != query_SLHD.shape[2],
        )
        return out_SHLD.transpose(1, 2).flatten(2)

    def sharded_state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
        """No parameters, nothing to save."""
        return {}


def _rows(packed: Tensor, runs: tuple[tuple[int, int], ...], split: int = 1) -> Iterator[Tensor]:
    """[T, H, D] -> of each run [S, L / split, H, D]."""
    parts = packed.split([count * length // split for count, length in runs])
    for part, (count, length) in zip(parts, runs, strict=True):
        yield part.unflatten(0, (count, length // split))


class _Rotated(torch.autograd.Function):
    """[T, H, D]: with the halves (a, b) of each head turned to (a cos - b sin, b cos + a sin).

    The backward pass turns back, for which it needs the angles only.
    """

    @staticmethod
    def forward(ctx: Any, heads_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1D, sin_T1D)
        return _rotate(heads_THD, cos_T1D, sin_T1D)

    @staticmethod
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor, None, None]:
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _rotate(grad_THD, cos_T1D, -sin_T1D), None, None


def _rotate(heads_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    return heads_THD.roll(heads_THD.shape[-1] // 2, -1).mul_(sin_T1D).addcmul_(heads_THD, cos_T1D)


class _AllGather(torch.autograd.Function):
    """All-gather along the first axis; the backward pass is its reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = local.new_empty(group.size() * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(out, local.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.group)
        return out, None
