"""Layer specifications: Transformer Engine's on GPUs, plain torch elsewhere."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_rapo.mcore.torch_layers.attention import PackedAttention
from megatron_rapo.mcore.torch_layers.rms_norm import RMSNorm
from megatron_rapo.mcore.torch_layers.swiglu import SwiGLU


def block_spec(layers: str, config: TransformerConfig, vp_stage: int | None) -> Any:
    """What GPTModel builds its layers from."""
    if layers == "transformer_engine":
        return gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.mlp.submodules.activation_func = SwiGLU
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)
