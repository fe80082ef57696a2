"""Training in bfloat16 and FP8 with Transformer Engine's layers is what it is with torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.gpu.settings import PRECISIONS, TORCH, TRANSFORMER_ENGINE
from tests.launch import run_distributed

STEPS = 6


class Tolerance(NamedTuple):
    """How far a precision may be from torch's layers in bfloat16."""

    nll: float  # mean cost of the rollout's tokens, before each step: relative
    grad_norm: float  # relative
    gap: float  # before the first step, mean |difference| of a token's log-probability, nats


BFLOAT16 = Tolerance(nll=0.005, grad_norm=0.05, gap=0.03)
FP8 = Tolerance(nll=0.02, grad_norm=0.15, gap=0.15)


def agrees(found: dict[str, Any], reference: dict[str, Any], tolerance: Tolerance) -> None:
    """And both have learned what they were trained on."""
    if "failed" in found or "failed" in reference:
        pytest.fail(found.get("failed") or reference["failed"])
    assert len(found["nll"]) == STEPS + 1 and len(found["loss"]) == STEPS
    assert found["nll"] == pytest.approx(reference["nll"], rel=tolerance.nll)
    assert found["grad_norm"] == pytest.approx(reference["grad_norm"], rel=tolerance.grad_norm)
    assert found["loss"] == pytest.approx(reference["loss"], rel=tolerance.nll)
    assert found["entropy"] == pytest.approx(reference["entropy"], rel=tolerance.nll)
    assert 0 < found["gap_mean"] <= tolerance.gap
    for each in (found, reference):
        assert each["nll"][-1] < each["nll"][0] * (1 - 3 * FP8.nll)  # by more than any tolerance


def test_bfloat16_agrees_with_float32_on_a_cpu(small: dict[str, Any]) -> None:
    agrees(small["precision"]["float32"], small["precision"][TORCH], BFLOAT16)


def test_another_training_does_not_agree(small: dict[str, Any]) -> None:
    """The comparison tells trainings apart: one of steps half as long, say."""
    found = small["precision"][TORCH]
    slower = found | {"nll": [(a + found["nll"][0]) / 2 for a in found["nll"]], "gap_mean": 0.01}
    with pytest.raises(AssertionError):
        agrees(slower, found, FP8)


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    worker = Path(__file__).with_name("precision_worker.py")
    return run_distributed(worker, 1, tmp_path_factory.mktemp("precision"), timeout_s=300) or {}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != TORCH])
def test_a_model_of_1b(on_gpu: dict[str, Any], precision: str) -> None:
    if precision not in on_gpu:
        pytest.skip(f"this GPU has no {precision}")
    agrees(on_gpu[precision], on_gpu[TORCH], BFLOAT16 if precision == TRANSFORMER_ENGINE else FP8)
