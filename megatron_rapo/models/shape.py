"""Read a model's shape from the config.json of its Hugging Face folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_rapo.config import ConfigError
from megatron_rapo.errors import shortened
from megatron_rapo.models.families import FAMILIES, Family, LayerParameter
from megatron_rapo.runtime.safe_json import JSONError, read_json


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers of one model. Its `family` has what all models of the architecture share."""

    architecture: str  # a key of FAMILIES
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding, the checkpoint's own padding included
    tied: bool  # the output layer shares the embedding's weights
    norm_eps: float
    rope_theta: float
    max_position: int  # longest sequence, tokens

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def q_size(self) -> int:
        """Return the width of all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Return the width of all queries, keys and values of a token."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def gate_up_size(self) -> int:
        return 2 * self.ffn_hidden_size

    def extent(self, parameter: LayerParameter) -> tuple[int, ...]:
        """Return the shape of a layer's parameter on a single tensor rank."""
        return tuple(getattr(self, size) for size in parameter.shape)

    @cached_property
    def matrix_weights(self) -> int:
        """Return the number of weights in the matrix products of one token, in all layers and the output layer."""
        per_layer = sum(math.prod(self.extent(p)) for p in self.family.layer if len(p.shape) == 2)
        return self.num_layers * per_layer + self.vocab_size * self.hidden_size

    def sequence_cost(self, num_tokens: int) -> float:
        """Return the FLOPs of a sequence. The unit is the FLOPs of one token without attention.

        A token takes 2 FLOPs per weight, and in each layer 4 * heads * head_dim for each token that it attends to.
        """
        return num_tokens + self.num_layers * self.q_size * num_tokens**2 / self.matrix_weights


def read_shape(folder: Path) -> ModelShape:
    """Return the shape in `folder`/config.json.

    Raises ConfigError for a missing folder or file, an unsupported architecture, a value of a wrong type or out of
    bounds, quantised weights, or a setting that changes the mathematics and is not implemented.
    """
    content = _read_config(folder)
    _check_quantisation(folder, content)
    family = _family(folder, content)
    config = _validated(folder, content)
    rope = config.rope_parameters or config.rope_scaling or {}
    _check_mathematics(folder, content, rope, family)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    return ModelShape(
        architecture=family.architecture,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=config.head_dim or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        tied=config.tie_word_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=_rope_theta(folder, rope.get("rope_theta"), config.rope_theta),
        max_position=config.max_position_embeddings,
    )


MAX_LAYERS, MAX_HEADS, MAX_LAYER_HEADS = 1000, 1024, 2**16
"""Limits, since lists grow with these: layers, heads of a layer, KV heads of all layers."""
MAX_JSON_BYTES = 2**26


def _check_mathematics(folder: Path, content: dict[str, Any], rope: dict[str, Any], family: Family) -> None:
    """Raise ConfigError for a setting with which the model computes something that is not implemented."""
    _refuse(folder, "rope type", rope.get("rope_type", rope.get("type", "default")), family.rope_types)
    part = rope.get("partial_rotary_factor", content.get("partial_rotary_factor"))
    _refuse(folder, "partial_rotary_factor", 1.0 if part is None else part, (1.0,))
    for setting in family.settings:
        _refuse(folder, setting.key, setting.value(content), setting.implemented)
    kinds = content.get("layer_types") or []
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        _refuse(folder, "layer_types", kind, family.layer_types)


class _HfConfig(BaseModel):
    """The numbers of a config.json that the trainer needs. Other fields are ignored here."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    num_hidden_layers: int = Field(ge=1, le=MAX_LAYERS)
    hidden_size: int = Field(ge=1, le=2**20)
    intermediate_size: int = Field(ge=1, le=2**24)
    num_attention_heads: int = Field(ge=1, le=MAX_HEADS)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=MAX_HEADS)
    head_dim: int | None = Field(default=None, ge=2, le=2**12)
    vocab_size: int = Field(ge=1, le=2**24)
    max_position_embeddings: int = Field(ge=1, le=2**31)
    tie_word_embeddings: bool = False
    rms_norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None


def _validated(folder: Path, content: dict[str, Any]) -> _HfConfig:
    """Return the numbers of `content`. Raises ConfigError for the first that is missing, of a wrong type or too large.

    All numbers are checked before anything is built whose size depends on one.
    """
    try:
        config = _HfConfig.model_validate(content)
        reason = _contradiction(config)
    except ValidationError as error:
        reason = _first_fault(error)
    if reason:
        raise ConfigError(f"model.path={folder}: config.json has {reason}; take the model's own file.")
    return config


def _first_fault(error: ValidationError) -> str:
    """Describe the numbers that are missing, or else the first one that is wrong."""
    wrong = error.errors()
    missing = [str(each["loc"][0]) for each in wrong if each["type"] in ("missing", "int_type")]
    if missing:
        return f"no number for {', '.join(missing)}"
    name, value, reason = wrong[0]["loc"][0], shortened(repr(wrong[0]["input"])), wrong[0]["msg"]
    return f"{name}={value}: {reason[0].lower()}{reason[1:]}"


def _contradiction(config: _HfConfig) -> str | None:
    """Return which numbers cannot belong to one model, or None if all can."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // heads
    if heads % kv_heads:
        return f"num_key_value_heads={kv_heads}: does not divide num_attention_heads={heads}"
    if config.head_dim is None and config.hidden_size % heads:
        return f"num_attention_heads={heads}: does not divide hidden_size={config.hidden_size}"
    if head_dim % 2:
        return f"head_dim={head_dim}: is odd, and rotary positions turn pairs"
    if (product := config.num_hidden_layers * kv_heads) > MAX_LAYER_HEADS:
        return f"num_hidden_layers x num_key_value_heads={product:,}: above the limit of {MAX_LAYER_HEADS:,}"
    return None


def _rope_theta(folder: Path, nested: Any, own: float | None) -> float:
    """Return the base of the rotary positions. transformers 5 puts it into rope_parameters, transformers 4 beside."""
    theta = nested if nested is not None else 10_000.0 if own is None else own
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 <= theta <= 1e12:
        raise ConfigError(
            f"model.path={folder}: config.json has rope_theta={shortened(repr(theta))}: not a number from 1 to 1e12; "
            "take the model's own file."
        )
    return float(theta)


def _family(folder: Path, config: dict[str, Any]) -> Family:
    """Return the family that config.json names. Raises ConfigError if FAMILIES lacks it."""
    named = config.get("architectures") or ["(none)"]
    architecture = named[0] if isinstance(named, list) else named
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ConfigError(
            f"model.path={folder}: architecture {shortened(str(architecture))} is not supported; "
            f"supported: {', '.join(sorted(FAMILIES))}. To add one, describe it in models/families.py "
            "(docs/adding_a_model.md shows how)."
        )
    return FAMILIES[architecture]


def _check_quantisation(folder: Path, config: dict[str, Any]) -> None:
    """Raise ConfigError for quantised weights."""
    for name in ("quantization_config", "compression_config"):
        if found := config.get(name):
            method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
            raise ConfigError(
                f"model.path={folder}: config.json has a {name} (quant_method {shortened(str(method))}), and quantised "
                "weights would be read without their scales; use the model's bfloat16 weights, or dequantise them."
            )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        if not folder.is_dir():
            raise ConfigError(f"model.path={folder}: no such folder; give a folder with config.json and *.safetensors.")
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path={folder}: holds no config.json; give a Hugging Face model folder.")
    except OSError as error:
        raise ConfigError(f"model.path={folder}: cannot be read ({error.strerror}); check its permissions.") from None
    return read_object(folder / "config.json")


def read_object(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object. Raises ConfigError if it holds something else."""
    try:
        if not file.is_file():  # reading from a pipe could wait forever
            raise JSONError("is not a file")
        if file.stat().st_size > MAX_JSON_BYTES:
            raise JSONError(f"has {file.stat().st_size:,} bytes, and {MAX_JSON_BYTES:,} is the limit")
        content = read_json(file)
    except JSONError as error:
        if file.is_file() and is_lfs_pointer(file):
            raise ConfigError(f"{file}: {LFS_POINTER}") from None
        raise ConfigError(f"{file}: {error}; correct the file, or copy the model's own again.") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); copy the model's own file again.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: not a JSON object; correct the file, or copy the model's own again.")
    return content


LFS_POINTER = "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file."


def is_lfs_pointer(file: Path) -> bool:
    """Return whether a file is only a pointer to content that Git LFS keeps."""
    with file.open("rb") as stream:
        return stream.read(64).startswith(b"version https://git-lfs.")


def _refuse(folder: Path, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"model.path={folder}: {name}={shortened(str(value))} is not implemented and would be trained wrongly; "
            f"use a model with {name} in {list(allowed)}."
        )
