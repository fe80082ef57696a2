"""Check Megatron's learning rate in each of the 6 optimizer steps of a run (3 rollouts, 2 steps each)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("schedule_worker.py")
DECAY = {"lr": 1e-3, "min_lr": 1e-4}
# 4 steps lead from the peak at step 2 to min_lr at step 6, the last.
COSINE = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(1, 5)]  # 0.854, 0.5, 0.146, 0
# name -> (settings, rates in 1e-3)
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "linear": ({"schedule": "linear", "warmup_steps": 2, **DECAY}, [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]),
    "cosine": (
        {"schedule": "cosine", "warmup_steps": 2, **DECAY},
        [0.5, 1.0, *(0.1 + 0.9 * share for share in COSINE)],
    ),
    "linear without warm-up": ({"schedule": "linear", **DECAY}, [1.0, 0.82, 0.64, 0.46, 0.28, 0.1]),
    "cosine without warm-up": (
        {"schedule": "cosine", **DECAY},
        [0.1 + 0.45 * (1 + math.cos(math.pi * i / 5)) for i in range(6)],
    ),
    "linear to 0": ({"schedule": "linear", "lr": 1e-3}, [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]),
    "constant": ({"schedule": "constant", "warmup_steps": 4, "lr": 1e-3}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
    "constant without warm-up": ({"schedule": "constant", "lr": 1e-3}, [1.0] * 6),
    "warm-up to the end": ({"schedule": "constant", "warmup_steps": 6, "lr": 1e-3}, [i / 6 for i in range(1, 7)]),
    "warm-up to the last but one": (
        {"schedule": "linear", "warmup_steps": 5, **DECAY},
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.1],
    ),
}


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = save_tiny_model(tmp_path_factory.mktemp("schedules") / "model", tied=True, num_layers=1)
    settings = json.dumps({name: settings for name, (settings, _) in SCHEDULES.items()})
    return run_distributed(WORKER, 1, folder, settings) or {}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_by_hand(rates: dict[str, Any], name: str) -> None:
    settings, expected = SCHEDULES[name]
    assert rates[name] == pytest.approx([1e-3 * rate for rate in expected], rel=1e-12, abs=1e-18)
    assert rates[name][0] > 0  # no step is lost to a rate of 0
    if settings["schedule"] != "constant":
        assert rates[name][-1] == settings.get("min_lr", 0.0)


def test_a_run_of_one_step_is_taken_at_lr(rates: dict[str, Any]) -> None:
    assert rates["one step"] == [1e-3]


@pytest.mark.parametrize("taken", ["1", "3", "5"])
def test_a_loaded_schedule_goes_on(rates: dict[str, Any], taken: str) -> None:
    """It is saved after some steps and loaded into a new one. One of an earlier version keeps its own rates."""
    assert rates["resumed"][taken] == rates["linear without warm-up"][int(taken) :]
    earlier = [1e-3 * (0.1 + 0.9 * (1 - i / 7)) for i in range(1, 7)]
    assert rates["resumed earlier"][taken] == pytest.approx(earlier[int(taken) :], rel=1e-12)
