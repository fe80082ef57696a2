"""What a model is, from the config.json of its Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rapo.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Everything about a model's architecture that the trainer and the resharding need."""

    architecture: str  # e.g. "Qwen2ForCausalLM"
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding, the checkpoint's own padding included
    tied: bool  # the output layer shares the embedding's weights
    qkv_bias: bool
    qk_norm: bool  # queries and keys are normalised, head by head
    norm_eps: float
    rope_theta: float
    max_position: int  # longest sequence, tokens

    def sequence_cost(self, num_tokens: int) -> float:
        """FLOPs of a sequence, in those that a token's matrix products take without attention.

        Per token 2 for each weight, per token and layer 4 * heads * head_dim for each token that it attends to.
        """
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        of_layer = self.hidden_size * (2 * q + 2 * kv + 3 * self.ffn_hidden_size)
        weights = self.num_layers * of_layer + self.vocab_size * self.hidden_size
        return num_tokens + self.num_layers * q * num_tokens**2 / weights


def read_shape(folder: Path) -> ModelShape:
    """The shape in `folder`/config.json.

    Raises ConfigError for a missing folder or file, an architecture that is not supported, or a setting of it that
    would change the mathematics and is not implemented.
    """
    config = _read_config(folder)
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"model.path={folder}: architecture {architecture} is not supported; "
            f"supported: {', '.join(sorted(_ARCHITECTURES))}. To add one, say what it is made of in hf/shape.py and "
            "where its parameters live in reshard/layout.py."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _refuse(folder, "rope type", rope.get("rope_type", rope.get("type", "default")), {"default"})
    _refuse(folder, "use_sliding_window", config.get("use_sliding_window", False), {False})
    _refuse(folder, "hidden_act", config.get("hidden_act", "silu"), {"silu"})
    if architecture != "Qwen2ForCausalLM":  # which has a bias for q, k and v, always, and no such setting
        _refuse(folder, "attention_bias", config.get("attention_bias", False), {False})
    _refuse(folder, "mlp_bias", config.get("mlp_bias", False), {False})
    missing = [name for name in _REQUIRED if not isinstance(config.get(name), int)]
    if missing:
        raise ConfigError(
            f"model.path={folder}: config.json has no number for {', '.join(missing)}; take the model's own file."
        )
    heads = config["num_attention_heads"]
    return ModelShape(
        architecture=architecture,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
        max_position=config["max_position_embeddings"],
        **_ARCHITECTURES[architecture],
    )


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {"qkv_bias": True, "qk_norm": False},
    "Qwen3ForCausalLM": {"qkv_bias": False, "qk_norm": True},
    "LlamaForCausalLM": {"qkv_bias": False, "qk_norm": False},
}
"""Dense decoders with RMSNorm, rotary positions and a gated SiLU MLP differ in these; the parameter map
(reshard/layout.py) has an entry for what each adds."""
_REQUIRED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ConfigError(f"model.path={folder}: no such folder; give a folder with config.json and *.safetensors.")
    try:
        config = read_object(folder / "config.json")
    except FileNotFoundError:
        raise ConfigError(f"model.path={folder}: holds no config.json; give a Hugging Face model folder.") from None
    return config


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ConfigError where it does not."""
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error}); mend the file.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: not a JSON object; mend the file.")
    return content


def _refuse(folder: Path, name: str, value: Any, allowed: set[Any]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"model.path={folder}: {name}={value} is not implemented and would be trained wrongly; "
            f"use a model with {name} in {sorted(allowed)}."
        )
