"""The learning rate of each of the 6 optimizer steps of a run (3 rollouts, 2 steps on each), through Megatron."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.models import save_tiny_model

WORKER = Path(__file__).with_name("schedule_worker.py")
DECAY = {"lr": 1e-3, "min_lr": 1e-4}
# 5 steps lead from the peak at step 2 to min_lr at step 7, which the run does not have
COSINE = [0.5 * (1 + math.cos(math.pi * i / 5)) for i in range(1, 5)]  # 0.905, 0.655, 0.345, 0.095
# name -> (settings, rates in 1e-3)
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "linear": ({"schedule": "linear", "warmup_steps": 2, **DECAY}, [0.5, 1.0, 0.82, 0.64, 0.46, 0.28]),
    "cosine": (
        {"schedule": "cosine", "warmup_steps": 2, **DECAY},
        [0.5, 1.0, *(0.1 + 0.9 * share for share in COSINE)],
    ),
    "linear to 0": ({"schedule": "linear", "lr": 1e-3}, [6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
    "constant": ({"schedule": "constant", "warmup_steps": 4, "lr": 1e-3}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
    "warm-up to the end": ({"schedule": "cosine", "warmup_steps": 6, **DECAY}, [i / 6 for i in range(1, 7)]),
}


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = save_tiny_model(tmp_path_factory.mktemp("schedules") / "model", tied=True, num_layers=1)
    settings = json.dumps({name: settings for name, (settings, _) in SCHEDULES.items()})
    return run_distributed(WORKER, 1, folder, settings) or {}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_by_hand(rates: dict[str, list[float]], name: str) -> None:
    settings, expected = SCHEDULES[name]
    assert rates[name] == pytest.approx([1e-3 * rate for rate in expected], rel=1e-12)
    assert rates[name][0] > 0  # no step is lost to a rate of 0
    assert rates[name][-1] > settings.get("min_lr", 0.0)
