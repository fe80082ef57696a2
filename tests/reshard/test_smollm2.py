"""A real Llama of 135M parameters through Megatron, an optimizer step, a resharding and vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed


@pytest.fixture(scope="module")
def results(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("smollm2")
    return run_distributed(Path(__file__).with_name("smollm2_worker.py"), 2, smollm2, folder) or {}


def test_the_engine_says_what_transformers_says(results: dict[str, Any]) -> None:
    assert "Paris" in results["answer"]
    assert results["gap to transformers"] < 1e-3


def test_the_engine_samples_from_the_trainers_policy(results: dict[str, Any]) -> None:
    assert results["before"] < 1e-3
    assert results["stale"] > 1e-2  # the update moved the policy
    assert results["after"] < 1e-3
