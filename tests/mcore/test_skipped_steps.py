"""A step whose loss is not finite changes nothing and is reported and saved. Too many of them end the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.scoring.packing import PackedBatch
from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

CASES: dict[str, dict[str, Any]] = {
    "TP2 float32": {"parallel": {"tensor": 2}},
    "PP2 bfloat16": {"parallel": {"pipeline": 2}, "precision": {"dtype": "bfloat16"}},
    "DP2 bfloat16 distributed": {"optimizer": {"distributed": True}, "precision": {"dtype": "bfloat16"}},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("skipped")
    save_tiny_model(folder / "model", tied=True, num_kv_heads=2)
    return run_distributed(Path(__file__).with_name("skipped_worker.py"), 2, folder) or {}


@pytest.mark.parametrize("case", CASES)
def test_the_run_goes_on_as_if_it_had_not_been(results: dict[str, Any], case: str) -> None:
    found = results[case]
    assert [step["skipped"] for step in found["disturbed"]] == [0, 1, 0, 1, 0]
    assert not any(math.isfinite(step["loss"]) for step in found["disturbed"] if step["skipped"])
    assert [step for step in found["disturbed"] if not step["skipped"]] == found["undisturbed"]
    assert len({step["lr"] for step in found["undisturbed"]}) == 3  # a schedule that a skipped step would move
    assert found["weights equal"]


def test_they_are_told_and_kept(results: dict[str, Any]) -> None:
    found = results["said"]
    told = f"loss nan, gradient norm inf; its micro-batches are in {found['folder']}"
    assert found["said"] == [
        f"WARNING: an optimizer step of step {step} was skipped: {told}" for step in (0, 1, 3, 4, 5)
    ]
    assert found["files"] == [
        f"step-{step:06d}-{number}-rank-{rank}.pt"
        for step, number in ((0, 1), (1, 2), (3, 1), (4, 2), (5, 3))
        for rank in (0, 1)
    ]
    assert found["kept"] == sorted(PackedBatch.__dataclass_fields__)


def test_too_many_in_a_row_end_the_run(results: dict[str, Any]) -> None:
    found = results["said"]
    assert found["error"] == (
        "optimizer.max_skipped_steps=2: 3 optimizer steps in a row had a loss or a gradient that is not finite (the "
        f"last one loss nan, gradient norm inf; its micro-batches are in {found['folder']}). Look at them; lower "
        "optimizer.lr or go on from an earlier checkpoint."
    )
