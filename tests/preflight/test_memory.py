"""The memory that preflight computes is that of real policies' and engines' tensors on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.preflight.memory_worker import CASES, ENGINES
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("preflight")
    save_tiny_model(
        folder / "model",
        tied=False,
        vocab_size=1024,
        hidden_size=256,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        intermediate_size=704,
    )
    result = run_distributed(Path(__file__).with_name("memory_worker.py"), 2, folder)
    assert result is not None
    return list(result["ranks"])


@pytest.mark.parametrize("case", [*CASES, *ENGINES])
def test_every_part_is_within_ten_percent(ranks: list[dict[str, Any]], case: str) -> None:
    for rank, found in enumerate(ranks):
        for part, (measured, computed) in found[case].items():
            assert computed == pytest.approx(measured, rel=0.1), f"{part} of rank {rank}"
