"""The short version of chaos.py; the long one is a command of its own."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.chaos import chaos


def test_a_run_that_is_killed_is_the_one_that_was_left_alone(tmp_path: Path) -> None:
    """TP2 is in tests/test_train.py, PP2 in tests/slurm/."""
    found = chaos(tmp_path, kills=1, seed=1, layout="DP2 distributed")
    assert found["same"] and len(found["kills"]) == 1
