"""After an optimizer step and resharding, vLLM's log-probabilities equal Megatron's, for every pair of layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.models import WeightReader
from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("engine_parity_worker.py")
TRAINERS = ("TP2", "PP2", "DP2")


ENGINES: dict[str, tuple[int, dict[str, Any]]] = {  # its tensor-parallel size and its model
    "engine TP1 tied": (1, {"tied": True}),
    "engine TP2 untied": (2, {"tied": False}),
    "engine TP2 mistral": (2, {"tied": False, "family": "mistral", "head_dim": 64, "gain": 0.9}),
}
SIZES: dict[str, Any] = {"vocab_size": 130, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "gain": 1.0}


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    engine_tensor, model = request.param
    folder = tmp_path_factory.mktemp("parity")
    save_tiny_model(folder / "model", seed=3, **SIZES | model)
    if model.get("family") == "mistral":
        publish_as_mistral_does(folder / "model")
    return run_distributed(WORKER, 2, folder / "model", folder, engine_tensor) or {}


def publish_as_mistral_does(folder: Path) -> None:
    """Put the weights into a shard, and beside them files of Mistral's own format, which vLLM prefers by default."""
    shard, names = "model-00001-of-00001.safetensors", WeightReader(folder).names
    (folder / "model.safetensors").rename(folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("params.json", "consolidated.safetensors", "tekken.json"):
        (folder / name).write_text("not to be read")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_engine_samples_from_the_trainers_policy(results: dict[str, Any], trainer: str) -> None:
    found = results[trainer]
    assert found["before"] < 1e-5
    assert found["stale"] > 1e-2  # the update moved the policy, so that the next line means something
    assert found["after"] < 1e-5
    assert found["version"] == 1


def test_every_trainer_layout_gives_the_same_tokens(results: dict[str, Any]) -> None:
    assert results["PP2"]["tokens"] == results["DP2"]["tokens"] == results["TP2"]["tokens"]
    assert len(results["TP2"]["tokens"]) == 8


def test_the_gap_of_an_engine_in_fp8_is_that_of_its_weights_and_its_kernels(results: dict[str, Any]) -> None:
    found, parts = results["FP8"], results["FP8"]["parts"]
    assert found["kept"]  # the trainer has its own weights again
    assert max(found["off"].values()) < 2  # rounded alike but for bfloat16, of numbers up to 448 scales
    assert parts["reshard/parity_trainer_fp8"] == 0  # it is not in FP8
    assert 1e-3 < found["gap"] < 0.1
    assert parts["reshard/parity_engine_fp8"] > 0.3 * found["gap"]
    assert 0 < parts["reshard/parity_kernels"] < found["gap"]
