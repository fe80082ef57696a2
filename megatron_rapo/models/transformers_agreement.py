"""Check that transformers, and so vLLM, reads the same model from config.json as the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_rapo.config import ConfigError
from megatron_rapo.errors import shortened
from megatron_rapo.models.shape import ModelShape
from megatron_rapo.runtime import gc_control

_NAMES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "vocab_size": "vocab_size",
    "tie_word_embeddings": "tied",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_position",
}
"""transformers' names of fields that all families have -> names of ModelShape."""


def check_agreement(folder: Path, shape: ModelShape) -> None:
    """Raise ConfigError for a config.json that the engine cannot read, or reads as another model.

    For a number that the file lacks, transformers' default can differ from ours (head_dim of Qwen3 is 128).
    """
    theirs = _read(folder)
    ours = {name: getattr(shape, field) for name, field in _NAMES.items()}
    for name, value in (ours | {"head_dim": shape.head_dim, "rope_theta": shape.rope_theta}).items():
        if theirs[name] != value:
            raise ConfigError(
                f"model.path={folder}: the engine reads {name}={shortened(repr(theirs[name]))} from config.json and "
                f"the trainer {value}; write {name} into the file."
            )


def _read(folder: Path) -> dict[str, Any]:
    with gc_control.imports():
        from transformers import AutoConfig  # takes seconds

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = {name: getattr(config, name) for name in _NAMES}
        found["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found["rope_theta"] = config.rope_parameters["rope_theta"]
    except Exception as error:  # several libraries check the fields, each with its own errors
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model.path={folder}: transformers, which reads config.json for the engine, cannot read it "
            f"({type(error).__name__}: {shortened(reason, 200)}); take the model's own file."
        ) from None
    return found
