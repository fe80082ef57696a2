"""Training with offloaded gradients and optimizer state is the same to the bit, and they are really away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

CASES: dict[str, dict[str, Any]] = {
    "TP2 float32": {"parallel": {"tensor": 2}},
    "PP2 VPP2 bfloat16": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "precision": {"dtype": "bfloat16"}},
    "DP2 float32 distributed": {"optimizer": {"distributed": True}},
    "DP2 bfloat16 distributed": {"optimizer": {"distributed": True}, "precision": {"dtype": "bfloat16"}},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("offload")
    save_tiny_model(folder / "model", tied=True, num_layers=4, num_kv_heads=2)
    worker = Path(__file__).with_name("offload_worker.py")
    return run_distributed(worker, 2, folder) or {}


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same_bit_by_bit(results: dict[str, Any], case: str) -> None:
    found = results[case]
    assert found["norms with offload"] == found["norms"]
    assert len(set(found["norms"])) == len(found["norms"])  # each step moved the weights
    assert found["weights equal"]


@pytest.mark.parametrize("case", CASES)
def test_between_steps_there_is_neither_gradient_nor_moment_on_the_device(results: dict[str, Any], case: str) -> None:
    found = results[case]
    assert found["away at first"] == found["away"] == 0
    assert found["in place"] > 0


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_whole(results: dict[str, Any], case: str) -> None:
    assert results[case]["norm resumed"] == results[case]["norms with offload"][-1]


def test_training_without_the_state_is_refused(results: dict[str, Any]) -> None:
    assert {found["refusal"] for found in results.values()} == {
        "memory.offload_optimizer: gradients and optimizer state are away; train within "
        "Policy.training_state.in_place()."
    }
