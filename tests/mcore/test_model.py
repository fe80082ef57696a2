"""Check Megatron's settings of number formats and of the model family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rapo.mcore.layers import ACTIVATIONS, NORMS
from megatron_rapo.mcore.model import transformer_config
from megatron_rapo.models import read_shape
from megatron_rapo.models.families import FAMILIES
from megatron_rapo.runtime.devices import Backend
from tests.runs import tiny_config
from tests.tiny_models import save_tiny_model


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ({"dtype": "bfloat16"}, {"fp8": None, "first_last_layers_bf16": False}),
        (
            {"dtype": "bfloat16", "fp8": "hybrid"},
            {"fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": False},
        ),
        (
            {"dtype": "bfloat16", "fp8": "e4m3", "fp8_recipe": "blockwise", "bf16_layers_at_end": 1},
            {
                "fp8": "e4m3",
                "fp8_recipe": "blockwise",
                "first_last_layers_bf16": True,
                "num_layers_at_start_in_bf16": 0,
                "num_layers_at_end_in_bf16": 1,
            },
        ),
    ],
)
def test_precision(tmp_path: Path, precision: dict[str, Any], expected: dict[str, Any]) -> None:
    model = save_tiny_model(tmp_path / "model", tied=True)
    config = tiny_config(model, tmp_path, precision=precision)
    found = transformer_config(config, read_shape(model), Backend.resolve(config))
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_megatron_is_told_what_the_family_says(tmp_path: Path, family: str) -> None:
    model = save_tiny_model(tmp_path / "model", tied=True, family=family)
    config = tiny_config(model, tmp_path)
    found = transformer_config(config, read_shape(model), Backend.resolve(config))
    assert (found.add_qkv_bias, found.qk_layernorm) == (family == "qwen2", family == "qwen3")
    assert (found.normalization, found.activation_func) == ("RMSNorm", torch.nn.functional.silu)
    assert (found.gated_linear_unit, found.add_bias_linear) == (True, False)


def test_every_family_has_an_implementation_of_its_layers() -> None:
    assert {family.activation for family in FAMILIES.values()} <= ACTIVATIONS.keys()
    assert {family.normalization for family in FAMILIES.values()} <= NORMS.keys()
