"""What Megatron is told of number formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.mcore.model import transformer_config
from megatron_rapo.models import read_shape
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
