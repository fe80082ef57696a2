"""The benchmark's figures by hand, and one run of it in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_convert
from benchmarks.environment import REPOSITORY
from tests.patience import HANG_S

TAKEN = {
    "copy": [{"s": 1.0, "peak_mib": 300.0}, {"s": 2.0, "peak_mib": 310.0}, {"s": 3.0, "peak_mib": 305.0}],
    "to_megatron": [{"s": 2.0, "peak_mib": 900.0}, {"s": 2.5, "peak_mib": 901.0}, {"s": 5.0, "peak_mib": 900.0}],
    "to_hf": [{"s": 4.0, "peak_mib": 2000.0}, {"s": 8.0, "peak_mib": 100.0}, {"s": 3.0, "peak_mib": 100.0}],
}


@pytest.fixture
def result() -> dict[str, Any]:
    return bench_convert.summary(TAKEN, nbytes=10**9, largest=2 * 10**8)


def test_figures_by_hand(result: dict[str, Any]) -> None:
    assert result["sides"]["to_megatron"] == {
        "s": 2.0,
        "median_s": 2.5,
        "gb_per_s": 0.5,
        "of_a_copys_speed": 0.5,  # of the fastest turns
        "peak_mib": 901,
        "projected_s": {"Qwen2.5-7B": round(15.23 * 2.0), "Qwen2.5-72B": round(145.4 * 2.0)},
    }


def test_targets(result: dict[str, Any]) -> None:
    found = {(target["side"], target["figure"]): target["met"] for target in bench_convert.targets_of(result)}
    assert found == {
        ("to_megatron", "of_a_copys_speed"): True,
        ("to_megatron", "peak_mib"): True,  # of 1e9 bytes and three of the largest tensor, 1526 MiB
        ("to_hf", "of_a_copys_speed"): False,
        ("to_hf", "peak_mib"): False,
    }


def test_one_run_in_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench_convert", "--small", "--repeats", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True, cwd=REPOSITORY)
    printed = json.loads(done.stdout)
    assert printed["sides"].keys() == set(bench_convert.SIDES)
    assert all(side["s"] > 0 and side["peak_mib"] > 50 for side in printed["sides"].values())
    assert not list(tmp_path.iterdir())
    file = tmp_path / "result.json"
    file.write_text(done.stdout)
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_convert", "--table", str(file)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert shown.stdout.count("\n| ") == 3
