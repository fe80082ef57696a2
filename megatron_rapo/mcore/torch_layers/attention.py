"""Rotate and attend within each packed sequence, by torch's causal scaled_dot_product_attention.

T packed tokens on this rank, H heads, Hkv of them of keys and values, D head size; S sequences of L tokens in a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_rapo.scoring.packing import PackedBatch, context_chunks

MASKED_QUERIES = 256
"""Largest number of queries in a call with a mask."""


def sequences_for_transformer_engine(batch: PackedBatch) -> PackedSeqParams:
    """Return a micro-batch's sequences as Transformer Engine's attention and rotation take them."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


class Run(NamedTuple):
    """Adjacent sequences of the same length in the unsplit micro-batch. They continue the same prompt, if any."""

    rows: int  # S
    length: int  # L
    prefix: int | None  # the run that holds this prompt


@dataclass
class TorchSequences(PackedSeqParams):
    """A micro-batch's sequences, for every layer's attention. (Megatron passes its PackedSeqParams down unchanged.)"""

    runs: tuple[Run, ...] = ()
    cos_T1D: Tensor | None = None  # for each token's position
    sin_T1D: Tensor | None = None  # with the signs of the rotation
    order_T: Tensor | None = None  # with context parallelism: the place of each token among the gathered ones


@dataclass(frozen=True, kw_only=True)
class SequencesForTorch:
    """Builds TorchSequences: rotary embeddings and boundaries are computed once for all layers."""

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
            order_T = order_T.to(batch.position_T.device)
        return TorchSequences(
            qkv_format="thd",
            runs=_runs(batch),
            cos_T1D=torch.cat([cos, cos], -1),
            sin_T1D=torch.cat([-sin, sin], -1),
            order_T=order_T,
        )


def _runs(batch: PackedBatch) -> tuple[Run, ...]:
    lengths = batch.cu_seqlens.diff().tolist()
    prefixes = [-1] * len(lengths) if batch.prefix_S is None else batch.prefix_S.tolist()
    alone = {*prefixes}  # prompts that others continue
    runs: list[Run] = []
    run_of: list[int] = []  # index of each sequence's run
    for (length, prefix, _), members in groupby(
        range(len(lengths)), key=lambda s: (lengths[s], prefixes[s], s if s in alone else -1)
    ):
        count = len(list(members))
        run_of += [len(runs)] * count
        runs.append(Run(count, length, run_of[prefix] if prefix >= 0 else None))
    return tuple(runs)


class PackedAttention(MegatronModule):
    """Rotary positions and causal attention within each packed sequence (thd).

    Attention is called once for each run of sequences of the same length. They are adjacent rows, so nothing is padded
    or copied. With context parallelism the keys and values of all ranks are gathered, and each of this rank's two
    chunks of a sequence attends to keys and values up to the chunk's end.
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
        """Compute attention: [T, H, D] queries, [T, Hkv, D] keys and values, all unrotated -> [T, 1, H * D]."""
        sequences, group = packed_seq_params, self._context_group
        query, key = (_Rotated.apply(t, sequences.cos_T1D, sequences.sin_T1D) for t in (query, key))
        value = value.contiguous()  # a view would keep queries and keys in memory too, for the backward pass
        if group.size() > 1:
            key, value = (_AllGather.apply(t, group)[sequences.order_T] for t in (key, value))
        queries, keys, values = (
            _rows(query, sequences.runs, group.size()),
            _rows(key, sequences.runs),
            _rows(value, sequences.runs),
        )
        outs = []
        for run, query_SLHD, key_SLHD, value_SLHD in zip(sequences.runs, queries, keys, values, strict=True):
            if run.prefix is not None:
                key_SLHD = _continued(keys[run.prefix], key_SLHD)
                value_SLHD = _continued(values[run.prefix], value_SLHD)
            outs.append(self._attend(query_SLHD, key_SLHD, value_SLHD).flatten(0, 1))
        return torch.cat(outs)[:, None]

    def _attend(self, query_SLHD: Tensor, key_SLHD: Tensor, value_SLHD: Tensor) -> Tensor:
        """Return the attention of one run, [S, L, H * D]."""
        rank, size = self._context_group.rank(), self._context_group.size()
        if size == 1:
            return self._after_prompt(query_SLHD, key_SLHD, value_SLHD)
        chunk = key_SLHD.shape[1] // (2 * size)
        ends = [(c + 1) * chunk for c in (rank, 2 * size - 1 - rank)]
        parts = [
            self._causal(chunk_SLHD, key_SLHD[:, :end], value_SLHD[:, :end])
            for chunk_SLHD, end in zip(query_SLHD.chunk(2, dim=1), ends, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _after_prompt(self, query_SLHD: Tensor, key_SLHD: Tensor, value_SLHD: Tensor) -> Tensor:
        """Return the attention where the first keys may be a prompt's that has no queries here, [S, L, H * D]."""
        length = query_SLHD.shape[1]
        prompt = key_SLHD.shape[1] - length
        if prompt == 0 or prompt**2 > MASKED_QUERIES * length:
            return self._causal(query_SLHD, key_SLHD, value_SLHD)
        padded_SLHD = F.pad(query_SLHD, (0, 0, 0, 0, prompt, 0))  # zero queries for the prompt cost less than masks
        return self._call(padded_SLHD, key_SLHD, value_SLHD)[:, prompt:]

    def _causal(self, query_SLHD: Tensor, key_SLHD: Tensor, value_SLHD: Tensor) -> Tensor:
        """Return the attention where the last query belongs to the last key, [S, L, H * D]."""
        before = key_SLHD.shape[1] - query_SLHD.shape[1]
        if before == 0:
            return self._call(query_SLHD, key_SLHD, value_SLHD)
        parts, end = [], before  # masked scores are computed too, so split the queries to have fewer of them
        for part_SLHD in query_SLHD.split(MASKED_QUERIES, dim=1):
            end += part_SLHD.shape[1]
            parts.append(self._call(part_SLHD, key_SLHD[:, :end], value_SLHD[:, :end]))
        return torch.cat(parts, dim=1)

    def _call(self, query_SLHD: Tensor, key_SLHD: Tensor, value_SLHD: Tensor) -> Tensor:
        """Return the same as `_causal`, in one call."""
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
        """Return nothing: there are no parameters to save."""
        return {}


def _rows(packed: Tensor, runs: Sequence[Run], split: int = 1) -> list[Tensor]:
    """Split [T, H, D] into runs of [S, L / split, H, D]."""
    parts = packed.split([run.rows * run.length // split for run in runs])
    return [part.unflatten(0, (run.rows, run.length // split)) for part, run in zip(parts, runs, strict=True)]


def _continued(prompt_1LHD: Tensor, rows_SLHD: Tensor) -> Tensor:
    """Put the prompt in front of each row."""
    return torch.cat([prompt_1LHD.expand(len(rows_SLHD), -1, -1, -1), rows_SLHD], dim=1)


class _Rotated(torch.autograd.Function):
    """Rotary embedding of [T, H, D]: turns the halves (a, b) of each head to (a cos - b sin, b cos + a sin).

    The backward pass rotates back. It needs only the angles.
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
