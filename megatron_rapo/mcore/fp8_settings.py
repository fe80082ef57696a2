"""Set up the trainer's FP8: its recipe, the token multiple of its kernels, and how to switch it off."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from megatron.core.transformer import TransformerConfig

from megatron_rapo.config import PrecisionConfig
from megatron_rapo.fp8_recipes import FP8_RECIPES
from megatron_rapo.runtime.patching import patched


def fp8_settings(precision: PrecisionConfig) -> dict[str, Any]:
    """Return the fields of Megatron's TransformerConfig that select the FP8 format, its recipe and its layers."""
    if precision.fp8 == "none":
        return {}
    start, end = precision.bf16_layers_at_start, precision.bf16_layers_at_end
    return {
        "fp8": precision.fp8,
        "fp8_recipe": precision.fp8_recipe,
        "first_last_layers_bf16": start + end > 0,
        "num_layers_at_start_in_bf16": start,
        "num_layers_at_end_in_bf16": end,
    }


def fp8_token_multiple(precision: PrecisionConfig) -> int:
    """Return the number that must divide the tokens of each process: 1 without FP8, else 16, or 32 for mxfp8."""
    if precision.fp8 == "none":
        return 1
    return FP8_RECIPES[precision.fp8_recipe].token_multiple


def without_fp8(megatron: TransformerConfig) -> AbstractContextManager[None]:
    """Compute in bfloat16 within this context, in the layers built with `megatron`, even if it sets FP8."""
    return patched(megatron, fp8=None)
