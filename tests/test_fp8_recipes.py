"""The table of FP8 recipes. A GPU shows whether they run: tests/gpu/test_precision.py."""

from __future__ import annotations

from typing import get_args

from megatron_rapo.fp8_recipes import FP8_RECIPES, Fp8RecipeName


def test_the_table_has_every_name() -> None:
    assert tuple(FP8_RECIPES) == get_args(Fp8RecipeName)


def test_what_a_gpu_must_have() -> None:
    """Ada is 8.9, Hopper 9.0, Blackwell 10.0 (the table of Transformer Engine's documentation)."""
    needed = {name: recipe.capability for name, recipe in FP8_RECIPES.items()}
    assert needed == {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
