"""Build models of real size and layout on one process, and compare them with preflight's counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.mcore import dry_run as module
from megatron_rapo.mcore.dry_run import dry_run
from megatron_rapo.models import ModelShape, read_shape
from megatron_rapo.preflight.memory import parameters
from tests.runs import tiny_config
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return read_shape(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", tied=True, num_kv_heads=2))


BIG = {
    "num_layers": 80,
    "hidden_size": 8192,
    "ffn_hidden_size": 29568,
    "num_heads": 64,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 152064,
}


@pytest.mark.parametrize(
    ("changes", "parallel", "world"),
    [
        ({**BIG, "tied": False}, {"tensor": 8, "sequence": True, "pipeline": 4, "virtual_pipeline": 2}, 256),
        ({**BIG, "tied": True}, {"tensor": 16, "pipeline": 3}, 96),  # more tensor ranks than KV heads
        ({}, {"pipeline": 2}, 4),
    ],
)
def test_what_preflight_counts(
    model: ModelShape, tmp_path: Path, changes: dict[str, Any], parallel: dict[str, Any], world: int
) -> None:
    shape, config = dataclasses.replace(model, **changes), tiny_config(tmp_path, tmp_path, parallel=parallel)
    built = dry_run(config, shape, world=world)
    assert [each.stage for each in built] == list(range(parallel["pipeline"]))
    assert [each.numel for each in built] == parameters(shape, config)


def test_another_model_than_the_map_says(model: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(model, ffn_hidden_size=model.ffn_hidden_size * 2)
    monkeypatch.setattr(module, "transformer_config", lambda c, _, backend: TRANSFORMER_CONFIG(c, wrong, backend))
    with pytest.raises(RuntimeError, match=r"rank 0: decoder.layers.0.mlp.linear_fc1.weight has shape .* says"):
        dry_run(tiny_config(tmp_path, tmp_path), model, world=2)


TRANSFORMER_CONFIG = module.transformer_config
