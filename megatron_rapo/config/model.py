"""The [model] section."""

from __future__ import annotations

from typing import Literal

from megatron_rapo.config.section import FilePath, Section


class ModelConfig(Section):
    """Name the policy. At step 0 it is the reference too."""

    path: FilePath
    """Load the policy and its tokenizer from this Hugging Face folder: config.json, safetensors weights, tokenizer
    files. The same weights are the reference."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """Choose the implementation of the layers. auto takes Transformer Engine where a GPU and the package are there and
    precision.dtype is bfloat16, and torch elsewhere.

    Needs: a GPU and Transformer Engine for transformer_engine.
    Excludes: transformer_engine excludes precision.dtype=float32 and batch.share_prompts.
    """
    recompute: Literal["none", "selective", "full"] = "none"
    """Recompute activations in the backward pass to save memory: none, only the attention core (selective), or whole
    layers (full).

    Also called: activation checkpointing, gradient checkpointing.
    """
