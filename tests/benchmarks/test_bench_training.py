"""Training, scaling and rollout: figures by hand, and one run in small of the step against a bare one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_rollout, bench_scaling, bench_training
from benchmarks.environment import REPOSITORY
from benchmarks.grpo.case import Case
from benchmarks.models import CPU_SIZES
from benchmarks.turns import WARM_UP, Turn, figures, take_turns
from tests.patience import HANG_S

TAKEN = {"bare": [Turn(1.0, 1.0), Turn(2.0, 1.0)], "ours": [Turn(1.5, 1.1), Turn(2.0, 1.2)]}


def test_sides_take_turns() -> None:
    called: list[str] = []
    taken = take_turns({name: lambda name=name: called.append(name) for name in "ab"}, repeats=2)  # type: ignore[misc]
    assert WARM_UP == 1 and "".join(called) == "ab" + "ba" + "ab"
    assert [len(turns) for turns in taken.values()] == [2, 2]


def test_ratios_are_of_the_same_turn() -> None:
    assert figures(TAKEN, "bare")["ours"] == {"wall_s": 1.75, "cpu_s": 1.15, "of_bare": 1.25, "cpu_of_bare": 1.15}


def test_a_training_step_against_a_bare_one_in_small() -> None:
    """It refuses to measure where the bare model says something else of the tokens than the policy."""
    command = [sys.executable, "-m", "benchmarks.bench_training", "--model", "1M", "--quick", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    [case] = result["cases"]
    assert (case["model"], case["tokens"], list(case["sides"])) == ("1M", 256, ["bare", "ours", "ours, GRPO"])
    assert min(side["cpu_s"] for side in case["sides"].values()) > 0
    assert bench_training.table(result).splitlines()[2].startswith("| 1M, float32 | 256 | ")


def training_case(of_bare: float, model: str = "135M") -> dict[str, Any]:
    return {"model": model, "dtype": "float32", "sides": {"ours": {"of_bare": of_bare}}}


def test_targets_of_training() -> None:
    assert [t["met"] for x in (1.15, 1.16) for t in bench_training.targets_of(training_case(x))] == [True, False]
    assert bench_training.targets_of(training_case(9.0, "1M")) == []


def test_scaling_by_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CPU_SIZES["1M"]))
    taken = {1: [{"128": [1.0, 3.0], "256": [4.0, 4.0]}], 2: [{"128": [1.0, 1.0], "256": [2.5, 2.5]}]}
    first, second = bench_scaling.rows_of("1M", tmp_path, taken)
    assert (first["dp1_s"], first["dp2_s"], first["speedup"]) == (2.0, 1.0, 2.0)
    assert (second["dp1_s"], second["dp2_s"], second["speedup"]) == (4.0, 2.5, 1.6)
    assert second["of_half_the_tokens"] == {"dp1": 2.0, "dp2": 2.5}
    assert bench_scaling.targets_of(first) == []
    assert [target["met"] for target in bench_scaling.targets_of(second)] == [True, False]
    table = bench_scaling.table({"rows": [first, second]}).splitlines()
    assert table[2].startswith("| 1M | 128 | 2.000 |  | 1.000 |  | 2.00 | ")
    assert table[3].startswith("| 1M | 256 | 4.000 | 2.00 | 2.500 | 2.50 | 1.60 | ")


def test_rollout_by_hand() -> None:
    case = Case(model="1M", lengths="equal", prompts=1, completions=2, median=5)
    taken = {
        "ours": [Turn(3.0, 3.0), Turn(3.0, 3.0)],
        "ours, packed": [Turn(2.0, 2.0), Turn(1.0, 1.0)],
        "vLLM": [Turn(1.0, 1.0), Turn(1.0, 1.0)],
    }
    found = bench_rollout.summary(case, taken)
    packed = found["sides"]["ours, packed"]
    assert packed["of_vLLM"] == 1.5
    assert packed["tokens_per_s"] == round(10 / 1.5, 1)
    assert [target["met"] for target in bench_rollout.targets_of(found)] == [False]
    packed["of_vLLM"] = 1.1
    assert [target["met"] for target in bench_rollout.targets_of(found)] == [True]
    assert "| 1M, equal | 3 (3.00) | 7 (1.10) | 10 (1.00) |" in bench_rollout.table({"cases": [found]})


def test_rollout_refuses_other_tokens() -> None:
    case = Case(model="1M", lengths="equal", prompts=1, completions=2, median=1)
    same = {name: [[5], [6]] for name in ("ours", "ours, packed", "vLLM", "vLLM, ours")}
    bench_rollout.check_same_work(case, same)
    with pytest.raises(AssertionError, match="other tokens"):
        bench_rollout.check_same_work(case, same | {"vLLM": [[5], [7]]})
    with pytest.raises(AssertionError, match="ours: other lengths"):
        bench_rollout.check_same_work(case, same | {"ours": [[5], [6, 7]]})
