"""Describe each model family in one descriptor, which has everything that is particular to the family.

The reader of config.json (`shape.py`), the parameter map, Megatron's configuration and layers (`mcore/`), the converter
and preflight's counts use these descriptors. docs/adding_a_model.md shows how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Size = Literal["hidden_size", "head_dim", "q_size", "qkv_size", "gate_up_size", "ffn_hidden_size"]
"""Names of those numbers of a ModelShape that give the shape of a parameter."""


@dataclass(frozen=True)
class LayerParameter:
    """One parameter of a decoder layer, by its names within the layer.

    `engine` is vLLM's name. It is also Hugging Face's, unless vLLM fuses several tensors into one: qkv_proj stands for
    q_proj, k_proj and v_proj, gate_up_proj for gate_proj and up_proj. `holding` says how tensor ranks split the
    parameter (the parameter map has a class for each value). `shape` is its shape on a single rank.
    """

    trainer: str
    engine: str
    holding: Literal["whole", "row_parallel", "qkv", "gate_up"]
    shape: tuple[Size, ...]


ATTENTION_NORM = LayerParameter("input_layernorm.weight", "input_layernorm.weight", "whole", ("hidden_size",))
QKV = LayerParameter(
    "self_attention.linear_qkv.weight", "self_attn.qkv_proj.weight", "qkv", ("qkv_size", "hidden_size")
)
QKV_BIAS = LayerParameter("self_attention.linear_qkv.bias", "self_attn.qkv_proj.bias", "qkv", ("qkv_size",))
Q_NORM = LayerParameter("self_attention.q_layernorm.weight", "self_attn.q_norm.weight", "whole", ("head_dim",))
K_NORM = LayerParameter("self_attention.k_layernorm.weight", "self_attn.k_norm.weight", "whole", ("head_dim",))
ATTENTION_OUTPUT = LayerParameter(
    "self_attention.linear_proj.weight", "self_attn.o_proj.weight", "row_parallel", ("hidden_size", "q_size")
)
MLP_NORM = LayerParameter("pre_mlp_layernorm.weight", "post_attention_layernorm.weight", "whole", ("hidden_size",))
GATE_UP = LayerParameter("mlp.linear_fc1.weight", "mlp.gate_up_proj.weight", "gate_up", ("gate_up_size", "hidden_size"))
DOWN = LayerParameter(
    "mlp.linear_fc2.weight", "mlp.down_proj.weight", "row_parallel", ("hidden_size", "ffn_hidden_size")
)


@dataclass(frozen=True)
class Setting:
    """A key of config.json that changes the mathematics, and its `implemented` values. All others are refused.

    `default` is transformers' value for a file without the key, so that trainer and engine compute the same. null means
    `default` too, unless None is an implemented value.
    """

    key: str
    default: Any
    implemented: tuple[Any, ...]

    def value(self, content: dict[str, Any]) -> Any:
        """Return the value in a config.json with this `content`."""
        found = content.get(self.key, self.default)
        return self.default if found is None and None not in self.implemented else found


NO_SLIDING_WINDOW = Setting("use_sliding_window", False, (False,))
SILU = Setting("hidden_act", "silu", ("silu",))
NO_ATTENTION_BIAS = Setting("attention_bias", False, (False,))
NO_MLP_BIAS = Setting("mlp_bias", False, (False,))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of dense decoders with rotary positions and a gated MLP."""

    architecture: str  # first of config.json's "architectures"
    layer: tuple[LayerParameter, ...]  # in the order of the computation
    settings: tuple[Setting, ...]
    rope_types: tuple[str, ...] = ("default",)
    layer_types: tuple[str, ...] = ("full_attention",)
    activation: Literal["silu"] = "silu"  # of the gate; mcore/layers.py implements it
    normalization: Literal["RMSNorm"] = "RMSNorm"  # mcore/layers.py implements it
    extra_states: tuple[str, ...] = (
        *(f"self_attention.{module}" for module in ("linear_qkv", "linear_proj", "core_attention")),
        *("self_attention.q_layernorm", "self_attention.k_layernorm", "mlp.linear_fc1", "mlp.linear_fc2"),
    )
    """Megatron's modules of a layer that have an extra state in a checkpoint: FP8's, or an empty one."""

    @property
    def qkv_bias(self) -> bool:
        return QKV_BIAS in self.layer

    @property
    def qk_norm(self) -> bool:
        """Return whether queries and keys are normalised in each head."""
        return Q_NORM in self.layer and K_NORM in self.layer


QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    layer=(ATTENTION_NORM, QKV, QKV_BIAS, ATTENTION_OUTPUT, MLP_NORM, GATE_UP, DOWN),
    settings=(NO_SLIDING_WINDOW, SILU, NO_MLP_BIAS),  # attention_bias has no effect: q, k and v always have a bias
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    layer=(ATTENTION_NORM, QKV, Q_NORM, K_NORM, ATTENTION_OUTPUT, MLP_NORM, GATE_UP, DOWN),
    settings=(NO_SLIDING_WINDOW, SILU, NO_ATTENTION_BIAS, NO_MLP_BIAS),
)
LLAMA = Family(
    architecture="LlamaForCausalLM",
    layer=(ATTENTION_NORM, QKV, ATTENTION_OUTPUT, MLP_NORM, GATE_UP, DOWN),
    settings=(
        NO_SLIDING_WINDOW,
        Setting("sliding_window", None, (None,)),  # vLLM uses a window that transformers and Megatron ignore
        SILU,
        NO_ATTENTION_BIAS,
        NO_MLP_BIAS,
    ),
)
MISTRAL = Family(
    architecture="MistralForCausalLM",
    layer=LLAMA.layer,
    settings=(
        Setting("sliding_window", 4096, (None,)),  # a file without the key has a window in transformers and vLLM
        Setting("llama_4_scaling", None, (None,)),  # vLLM scales queries by it, transformers does not
        SILU,
        NO_ATTENTION_BIAS,
        NO_MLP_BIAS,
    ),
)
FAMILIES = {family.architecture: family for family in (QWEN2, QWEN3, LLAMA, MISTRAL)}
