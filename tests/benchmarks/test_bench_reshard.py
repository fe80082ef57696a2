"""The benchmark's figures by hand, and one run of it in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_reshard
from benchmarks.environment import REPOSITORY
from tests.patience import HANG_S

MIB = 2**20
TAKEN = {  # two turns, seconds
    "ours, plain": {"transfer": [1.0, 3.0], "engine": [0.0, 0.0], "total": [1.5, 3.5]},
    "ours and proof, plain": {"transfer": [1.0, 3.0], "proof": [0.5, 0.5], "engine": [0.0, 0.0], "total": [2.0, 4.0]},
    "ours, packed": {"transfer": [1.0, 3.0], "engine": [2.0, 2.0], "total": [4.5, 4.5]},
    "ours and proof, packed": {"transfer": [1.0, 3.0], "proof": [0.5, 0.5], "engine": [2.0, 2.0], "total": [5.0, 5.0]},
    "gather, plain": {"total": [20.0, 20.0]},
    "gather, packed": {"total": [10.0, 10.0]},
    "memcpy": {"total": [0.5, 1.0]},
    "gloo": {"total": [0.5, 1.0]},
}
TRAFFIC = [[100 * MIB, 0.0, 50 * MIB, 2e8], [100 * MIB, 50 * MIB, 0.0, 1e8]]  # of two ranks; planning in ns


@pytest.fixture
def result() -> dict[str, Any]:
    found: dict[str, Any] = bench_reshard.summary("TP2 -> TP2", TAKEN, TRAFFIC)
    return found


def test_figures_by_hand(result: dict[str, Any]) -> None:
    assert result["mib"] == {"copied": [100.0, 100.0], "sent": [0.0, 50.0], "received": [50.0, 0.0]}
    assert result["planning_s"] == 0.2
    assert result["seconds"]["ours, plain"]["transfer"] == 2.0
    assert result["floor_s"] == 1.5
    assert result["transfer_gb_per_s"] == round(150 * MIB / 2.0 / 1e9, 2)
    assert result["memcpy_gb_per_s"] == round(100 * MIB / 0.75 / 1e9, 2)
    assert result["shares"] == {  # of 0.2 s of planning and 3 s, or 5 s, of resharding
        "plain": {"planning": 0.062, "transfer": 0.625, "proof": 0.156, "engine": 0.0},
        "packed": {"planning": 0.038, "transfer": 0.385, "proof": 0.096, "engine": 0.385},
    }
    assert result["ratios"] == {  # each the median of the turns' own ratios
        "transfer of floor": (1.0 / 1.0 + 3.0 / 2.0) / 2,
        "transfer of memcpy": round((1.0 / 0.75 + 3.0 / 1.5) / 2, 3),  # of 150 MiB, where 100 were measured
        "proof of resharding": round((0.5 / 2 + 0.5 / 4) / 2, 3),  # of the whole, what it adds
        "proof of resharding, packed": 0.1,
        "gather of ours": 7.5,
        "gather of ours, packed": 2.0,
    }


def test_targets(result: dict[str, Any]) -> None:
    met = {target["figure"]: target["met"] for target in bench_reshard.targets_of(result)}
    assert met == {"transfer of floor": True, "proof of resharding": True, "gather of ours": True}
    result["ratios"] |= {"transfer of floor": 1.51, "proof of resharding": 0.26, "gather of ours": 4.9}
    assert not any(target["met"] for target in bench_reshard.targets_of(result))


def test_one_case_in_small(tmp_path: Path) -> None:
    """Real engines on two processes; the table takes what it prints."""
    command = [sys.executable, "-m", "benchmarks.bench_reshard", "--small", "--case", "TP2 -> TP2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-4000:]
    printed = json.loads(done.stdout)
    [case] = printed["cases"]
    assert case["mib"]["sent"] == [0.0, 0.0] and min(case["mib"]["copied"]) > 1
    assert all(seconds > 0 for parts in case["seconds"].values() for name, seconds in parts.items() if name == "total")
    assert [target["case"] for target in printed["targets"]] == ["TP2 -> TP2"] * 3
    file = tmp_path / "result.json"
    file.write_text(done.stdout)
    table = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_reshard", "--table", str(file)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert table.stdout.startswith("| | transfer, s |") and "| TP2 -> TP2 |" in table.stdout
