"""Build layer specifications: Transformer Engine's on GPUs, plain torch's elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from megatron_rapo.mcore.torch_layers.attention import PackedAttention
from megatron_rapo.mcore.torch_layers.rms_norm import RMSNorm
from megatron_rapo.mcore.torch_layers.swiglu import SwiGLU
from megatron_rapo.models.families import Family


@dataclass(frozen=True)
class Activation:
    """A gate's activation: the function, and the module for torch's layers that also multiplies with up."""

    function: Callable[[Tensor], Tensor]
    gated: type


ACTIVATIONS = {"silu": Activation(F.silu, SwiGLU)}
NORMS = {"RMSNorm": RMSNorm}
"""Torch's layers for the names that a Family uses."""


def block_spec(layers: str, config: TransformerConfig, family: Family, vp_stage: int | None) -> Any:
    """Return what GPTModel builds its layers from."""
    if layers == "transformer_engine":
        return gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=family.qk_norm)
    norm = NORMS[family.normalization]
    layer = gpt_layer_specs.get_gpt_layer_local_spec(normalization=family.normalization)
    layer.submodules.input_layernorm = norm
    layer.submodules.pre_mlp_layernorm = norm
    layer.submodules.mlp.submodules.activation_func = ACTIVATIONS[family.activation].gated
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if family.qk_norm:
        attention.q_layernorm = attention.k_layernorm = norm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)
