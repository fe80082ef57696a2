"""What only a GPU shows, with vLLM's CUDA build: `python -m pytest tests/gpu` where there is one.

Tests marked `gpu` are skipped where there is none. The others run what those do at a tiny size on a CPU, so that what
is not of the GPU is known to work before one is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.launch import REPOSITORY, RESULT_VARIABLE, TAIL_CHARACTERS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What small_worker.py found on a CPU."""
    if torch.cuda.is_available():
        pytest.skip("the same runs on the GPU at full size")
    folder = tmp_path_factory.mktemp("small")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.small_worker", folder],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", RESULT_VARIABLE: str(folder / "result.json")},
    )
    assert done.returncode == 0, done.stderr[-TAIL_CHARACTERS:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found
