"""Run the recorded rollout under every layout, once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.mcore.layouts import ALL
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("layout_worker.py")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the models that LAYOUTS names."""
    folder = tmp_path_factory.mktemp("models")
    shape = {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "gain": 0.7}
    save_tiny_model(folder / "untied", tied=False, vocab_size=131, seed=1, **shape)  # not divisible by 2
    save_tiny_model(folder / "tied", tied=True, vocab_size=128, seed=2, **shape)
    shape["num_layers"] = 5
    save_tiny_model(folder / "qwen3", tied=False, family="qwen3", vocab_size=131, seed=3, **shape)
    save_tiny_model(folder / "llama", tied=True, family="llama", vocab_size=128, seed=4, **shape)
    save_tiny_model(folder / "mistral", tied=False, family="mistral", vocab_size=131, seed=5, head_dim=64, **shape)
    return folder


@pytest.fixture(scope="session")
def found(models: Path) -> dict[str, Any]:
    """Return the results of layout_worker.py for each layout."""
    results: dict[str, Any] = {}
    for nproc in sorted({layout.nproc for layout in ALL.values()}):
        results |= run_distributed(WORKER, nproc, models) or {}
    return results
