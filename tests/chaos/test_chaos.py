"""The short version of chaos.py; the long one is a command of its own."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.chaos import chaos


def test_a_run_that_is_killed_again_and_again_is_the_one_that_was_left_alone(tmp_path: Path) -> None:
    found = chaos(tmp_path, kills=2, seed=1)
    assert found["same"] and len(found["kills"]) == 2
