"""`megatron-rapo launch`: torchrun that says no more than the run does, and ends with its status.

tests/test_train.py sends signals to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rapo.commands import launch
from megatron_rapo.errors import InputError
from tests.patience import HANG_S

ROOT = Path(__file__).parents[1]


def test_bad_input_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "megatron_rapo", "launch", "--nproc-per-node", "2", "train", "none.toml", "--resume"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.splitlines() == [
        "error: none.toml: no such configuration file; check the path.",
        "process 0 of the run ended with status 2; what it said is above",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc-per-node", "0", "train"], "'0': not a whole number from 1 to 1,024"),
        (["--master-port", "70000", "train"], "'70000': not a whole number from 1 to 65,535"),
        (["--nnodes", "2", "--node-rank", "2", "train"], "--node-rank 2: the nodes are 0 to 1"),
        (["--nnodes", "2", "train"], "--nnodes 2: name node 0 with --master-addr"),
        ([], "required: COMMAND"),
    ],
)
def test_options_are_checked(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_other_commands_are_not_launched() -> None:
    with pytest.raises(InputError, match="launch doctor: runs on one process; call megatron-rapo doctor by itself"):
        launch.main(["doctor"])
