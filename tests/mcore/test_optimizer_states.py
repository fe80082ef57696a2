"""A distributed optimizer's state is restored to the bit. A checkpoint with a wrong state is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.mcore.optimizer_states import CASES, MODELS, PROCESSES, Case
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("optimizer_state_worker.py")
SAME = [case for case in CASES if case.same_layout]
CHANGED = [case for case in CASES if not case.same_layout]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("states")
    for name, sizes in MODELS.items():
        save_tiny_model(folder / name, **sizes)
    return run_distributed(WORKER, max(PROCESSES), folder) or {}


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_the_same_layout_restores_every_bit(results: dict[str, Any], case: Case) -> None:
    found = results[case.name]
    assert found["wrong"] == [[]] * case.loaded_on
    assert min(found["tensors"]) > 20
    assert found["resumed"] == found["went_on"]


@pytest.mark.parametrize("case", CHANGED, ids=lambda case: case.name)
def test_another_layout_goes_on_with_the_same_state(results: dict[str, Any], case: Case) -> None:
    """Loading compares the digests of all weights and moments. The loss differs only by the order of sums."""
    [saved] = [
        same for same in SAME if (same.model, same.saved, same.saved_on) == (case.model, case.saved, case.saved_on)
    ]
    assert results[case.name]["resumed"] == pytest.approx(results[saved.name]["went_on"], rel=1e-6)


def test_state_that_megatron_shifts_is_refused(results: dict[str, Any]) -> None:
    said = results["unmended"]["with digests"]
    assert "/with digests/step-000001: " in said and "are not what was saved, though its files are sound" in said


def test_a_checkpoint_without_digests_is_refused_where_weights_and_optimizer_differ(results: dict[str, Any]) -> None:
    said = results["unmended"]["without digests"]
    assert "its optimizer state was damaged when it was saved (tied embeddings with pipeline > 1" in said
    assert results["unmended"]["sound, without digests"] == ""
