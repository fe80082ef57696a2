"""Layer specifications: Transformer Engine's on GPUs, plain torch elsewhere.

T packed tokens on this rank, S sequences, H heads, D head size, L longest sequence of the micro-batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from megatron_rapo.packing import context_chunks


def block_spec(layers: str, config: TransformerConfig, vp_stage: int | None) -> Any:
    """What GPTModel builds its layers from."""
    if layers == "transformer_engine":
        return gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm that sequence parallelism works with (megatron's own wrapper refuses it)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        # finalize_model_grads sums the gradients of parameters marked so over the tensor ranks
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class PackedAttention(MegatronModule):
    """Causal attention within each packed sequence (thd), by torch's scaled_dot_product_attention.

    The sequences are laid side by side as rows for one call. With context parallelism the keys and values of all
    ranks are gathered, and this rank's queries attend to them under a mask by position.
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
        packed_seq_params: PackedSeqParams,
        **_kwargs: Any,
    ) -> Tensor:
        """[T, H, D] queries, [T, Hkv, D] keys and values -> [T, 1, H * D]."""
        cu_seqlens, context = packed_seq_params.cu_seqlens_q, self._context_group.size()
        if context > 1:
            chunks = context_chunks(cu_seqlens, context).to(query.device)
            key, value = (_gather_context(t, chunks, self._context_group) for t in (key, value))
        query_rows, real_SL = _rows(cu_seqlens // context, query.device)
        key_rows, _ = _rows(cu_seqlens, query.device)
        mask: Tensor | None = None
        if context > 1:
            starts_S1 = cu_seqlens[:-1].to(query.device)[:, None]
            position_SL = chunks[self._context_group.rank()][query_rows] - starts_S1
            key_position_L = torch.arange(key_rows.shape[1], device=query.device)
            mask = (position_SL[:, :, None] >= key_position_L)[:, None]
        out_SHLD = F.scaled_dot_product_attention(
            query[query_rows].transpose(1, 2),
            key[key_rows].transpose(1, 2),
            value[key_rows].transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return out_SHLD.transpose(1, 2).flatten(2)[real_SL].unsqueeze(1)

    def sharded_state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
        """No parameters, nothing to save."""
        return {}


def _rows(cu_seqlens: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """[S, L] packed index of each sequence's tokens (its last one repeated where it is shorter), and which are real."""
    starts_S1, ends_S1 = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    index_SL = starts_S1 + torch.arange(int((ends_S1 - starts_S1).max()), device=cu_seqlens.device)
    return torch.minimum(index_SL, ends_S1 - 1).to(device), (index_SL < ends_S1).to(device)


def _gather_context(local: Tensor, chunks: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[T, Hkv, D] on each context rank -> all of them in the micro-batch's own order, [context * T, Hkv, D]."""
    gathered: Tensor = _AllGather.apply(local, group)
    return gathered[torch.argsort(chunks.flatten())]


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
