"""Parts that fail or hang are not the end of it; what each has said is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.environment import NO_GPU, REPOSITORY
from benchmarks.gpu.run_all import PARTS, Part, run_all
from tests.patience import HANG_S


def python(code: str, limit_s: float = 60) -> Part:
    return Part(command=(sys.executable, "-c", code), limit_s=limit_s)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("results")
    (folder / "bad.json").write_text("of an earlier run, which was longer")
    (folder / "test_three.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\ndef test_skipped(): pytest.skip('why')\n"
    )
    parts = {
        "bad": python("import sys; print('[1]'); print('woe', file=sys.stderr); sys.exit(3)"),
        "slow": python("import time; time.sleep(60)", limit_s=1),
        "good": python("print('[2]')"),
        "tests": Part(
            command=(sys.executable, "-m", "pytest", "-q", "{folder}/test_three.py", "--junitxml={folder}/tests.xml"),
            limit_s=HANG_S,
            is_pytest=True,
        ),
    }
    return run_all(parts, folder), folder


def test_every_part_is_run_and_judged(ran: tuple[dict[str, Any], Path]) -> None:
    found, _ = ran
    assert {name: each["verdict"] for name, each in found["parts"].items()} == {
        "bad": "failed: exit status 3",
        "slow": "failed: still running after 1 s",
        "good": "passed",
        "tests": "failed: exit status 1",
    }
    assert found["passed"] is False and found["seconds"] >= 1


def test_what_each_says_is_kept_apart(ran: tuple[dict[str, Any], Path]) -> None:
    _, folder = ran
    assert [(folder / f"{name}.json").read_text() for name in ("bad", "good")] == ["[1]\n", "[2]\n"]
    assert (folder / "bad.log").read_text() == "woe\n"
    assert "1 failed, 1 passed, 1 skipped" in (folder / "tests.log").read_text()


def test_the_tests_outcomes(ran: tuple[dict[str, Any], Path]) -> None:
    found = json.loads((ran[1] / "tests.json").read_text())
    assert found["passed"] == 1
    assert [(name.rpartition("::")[2], why) for name, why in found["failed"].items()] == [("test_bad", "assert 1 == 2")]
    assert [name.rpartition("::")[2] for name in found["skipped"]] == ["test_skipped"]


def test_all_that_passes(tmp_path: Path) -> None:
    assert run_all({"good": python("print('[2]')")}, tmp_path)["passed"] is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [REPOSITORY / "benchmarks/gpu.sh", tmp_path / "results"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == NO_GPU
    assert done.stderr.startswith("benchmarks/gpu.sh: needs a GPU, and torch ")
    assert not (tmp_path / "results").exists()


def test_parts_are_commands_that_exist() -> None:
    assert PARTS.keys() == {"loss", "training", "reshard", "tests"}
    for part in PARTS.values():
        module = part.command[2]
        assert module == "pytest" or (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), module
