"""[memory]: the same tokens and gradients with each setting, and room on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.gpu

CASES: dict[str, dict[str, bool]] = {
    "neither": {},
    "engine_sleep": {"engine_sleep": True},
    "offload_optimizer": {"offload_optimizer": True},
    "reference_on_device": {"reference_on_device": True},
    "both": {"engine_sleep": True, "offload_optimizer": True},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("memory")
    save_tiny_model(folder / "model", tied=False, hidden_size=1024, num_layers=4, num_heads=16, num_kv_heads=4)
    worker = Path(__file__).with_name("memory_worker.py")
    return {case: run_distributed(worker, 1, folder, case, timeout_s=240) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_the_same(results: dict[str, Any], case: str) -> None:
    assert results[case]["answers"] == results["neither"]["answers"]
    assert results[case]["norms"] == results["neither"]["norms"]


def test_an_engine_asleep_leaves_its_cache_to_training(results: dict[str, Any]) -> None:
    for case in ("engine_sleep", "both"):
        assert results[case]["training_mib"][-1] < results["neither"]["training_mib"][-1] - 400  # of 512


def test_state_in_host_memory_leaves_room_to_sampling(results: dict[str, Any]) -> None:
    # 36M parameters: 4 bytes of gradient, and from the second step on 12 of optimizer state, 548 MiB
    for case in ("offload_optimizer", "both"):
        assert results[case]["sampling_mib"][-1] < results["neither"]["sampling_mib"][-1] - 300
