"""After resharding between any layouts, vLLM holds the same weights as if it had loaded the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.reshard.matrix_worker import CASES, MODELS, SIZES
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("matrix_worker.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Return what each rank found, by the number of processes."""
    folder = tmp_path_factory.mktemp("matrix")
    for name, settings in MODELS.items():
        for seed, state in enumerate(("old", "new")):
            save_tiny_model(folder / name / state, seed=seed, **SIZES, **settings)
    found = {}
    for nproc in sorted({case.nproc for case in CASES.values()}):
        result = run_distributed(WORKER, nproc, folder)
        assert result is not None
        found[nproc] = result["ranks"]
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_engine_holds_and_says_what_a_fresh_one_does(ranks: dict[int, Any], case: str) -> None:
    """All parameters and greedy log-probabilities are equal bit by bit. (Packed parameters look empty.)"""
    of_case = ranks[CASES[case].nproc]
    assert len(of_case) == CASES[case].nproc
    for rank in of_case:
        found = rank[case]
        for layout in CASES[case].layouts:
            assert found[layout] == {"tensors": True, "answers": True}, layout
            assert found[f"{layout}, moved"], layout
        assert found["parameters"] > 5 * 6
