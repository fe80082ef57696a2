"""A checkpoint continues a run bit by bit, FP8's scales included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.settings import PRECISIONS, TORCH
from tests.launch import run_distributed

DETERMINISTIC = {  # what Transformer Engine and cuBLAS choose their kernels by
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def continues(found: dict[str, Any]) -> None:
    if "failed" in found:
        pytest.fail(found["failed"])
    first, second = found["resumed"]
    assert first == second, "the kernels do not give the same bits again: the checkpoint cannot be judged"
    assert first == found["went_on"]
    assert found["weights_equal"] is True and found["scales_equal"] is True
    assert found["trainer"] == {"step": 2}
    norms = [step["grad_norm"] for step in [*found["trained"], *found["went_on"]]]
    assert len(set(norms)) == len(norms), "every step is another, so that equal ones mean something"


def test_on_a_cpu(small: dict[str, Any]) -> None:
    continues(small["checkpoint"][TORCH])


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    worker = Path(__file__).with_name("checkpoint_worker.py")
    return run_distributed(worker, 1, tmp_path_factory.mktemp("checkpoint"), timeout_s=240, env=DETERMINISTIC) or {}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_in_every_precision(on_gpu: dict[str, Any], precision: str) -> None:
    if precision not in on_gpu:
        pytest.skip(f"this GPU has no {precision}")
    continues(on_gpu[precision])


@pytest.mark.gpu
def test_delayed_scaling_has_something_to_keep(on_gpu: dict[str, Any]) -> None:
    """Two layers of four linears, forward and backward each; nothing in bfloat16."""
    assert on_gpu["fp8 delayed"]["scales"] == 2 * 4 * 2
    assert on_gpu["transformer_engine"]["scales"] == 0
