"""A checkpoint continues a run: bit by bit under its own layout, to rounding under another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("checkpoint_worker.py")
FLOAT32 = ("TP2", "PP2", "PP2 VPP2", "DP2")
DISTRIBUTED = ("DP2 distributed", "DP2 bf16 distributed")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_model(folder / "model", tied=True, num_layers=4, num_heads=2, num_kv_heads=2, gain=1.0)
    return run_distributed(WORKER, 2, folder) or {}


@pytest.mark.parametrize("layout", [*FLOAT32, *DISTRIBUTED])
def test_resuming_is_bitwise(results: dict[str, Any], layout: str) -> None:
    found = results[f"{layout} -> {layout}"]
    assert found["resumed"] == found["went_on"]
    assert found["weights_equal"] is True and found["optimizer_equal"] is True
    assert found["random_equal"] is True
    assert found["state"] == {"step": 2, "words": ["any", 1]}


@pytest.mark.parametrize("saved", FLOAT32)
@pytest.mark.parametrize("loaded", FLOAT32)
def test_resuming_under_another_layout(results: dict[str, Any], saved: str, loaded: str) -> None:
    found = results[f"{saved} -> {loaded}"]
    for resumed, went_on in zip(found["resumed"], found["went_on"], strict=True):
        assert resumed["loss"] == pytest.approx(went_on["loss"], rel=1e-5)
        assert resumed["lr"] == went_on["lr"]


@pytest.mark.parametrize(
    ("saved", "loaded", "words"),
    [
        ("TP2", "DP2 distributed", "optimizer.distributed=True: "),
        ("DP2 distributed", "PP2", "resume with optimizer.distributed=True."),
        ("DP2 bf16 distributed", "DP2 distributed", "precision.dtype=float32: "),
    ],
)
def test_another_kind_of_optimizer_state_is_refused(
    results: dict[str, Any], saved: str, loaded: str, words: str
) -> None:
    assert words in results[f"{saved} -> {loaded}"]["refused"]


@pytest.mark.parametrize("layout", [*FLOAT32, *DISTRIBUTED])
def test_a_checkpoint_that_was_cut_up_anew_is_the_same(results: dict[str, Any], layout: str) -> None:
    found = results[f"{layout}, cut up anew"]
    assert found["resumed"] == found["went_on"]


def test_a_checkpoint_that_one_process_cannot_write(results: dict[str, Any]) -> None:
    found = results["full disk"]
    assert len(set(found["said"])) == 1  # on every process
    assert "/full/step-000002.partial: the checkpoint could not be saved: the disk is full (" in found["said"][0]
    assert found["left"] == ["latest", "step-000001"]
    assert found["then"] == ["latest", "step-000001", "step-000003"]
