"""Check the recipe that Megatron gets. tests/gpu/test_precision.py runs it on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_rapo.config import PrecisionConfig
from megatron_rapo.mcore.fp8_settings import fp8_settings, fp8_token_multiple, without_fp8


def test_megatron_gets_nothing_without_fp8() -> None:
    assert fp8_settings(PrecisionConfig()) == {}
    assert fp8_token_multiple(PrecisionConfig()) == 1


def test_megatron_gets_the_recipe_and_the_layers_in_bfloat16() -> None:
    precision = PrecisionConfig(fp8="hybrid", fp8_recipe="blockwise", bf16_layers_at_start=1, bf16_layers_at_end=2)
    assert fp8_settings(precision) == {
        "fp8": "hybrid",
        "fp8_recipe": "blockwise",
        "first_last_layers_bf16": True,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 2,
    }
    assert not fp8_settings(PrecisionConfig(fp8="e4m3"))["first_last_layers_bf16"]


@pytest.mark.parametrize(("recipe", "multiple"), [("tensorwise", 16), ("blockwise", 16), ("mxfp8", 32)])
def test_tokens_are_a_multiple_of_what_the_kernels_need(recipe: str, multiple: int) -> None:
    assert fp8_token_multiple(PrecisionConfig(fp8="hybrid", fp8_recipe=recipe)) == multiple


def test_fp8_is_switched_off_and_on_again() -> None:
    megatron = SimpleNamespace(fp8="hybrid")
    try:
        with without_fp8(megatron):
            assert megatron.fp8 is None
            raise KeyError
    except KeyError:
        assert megatron.fp8 == "hybrid"
