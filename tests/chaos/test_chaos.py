"""The short version of chaos.py; the long one is a command of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import chaos


@pytest.mark.parametrize("layout", ["PP2", "DP2 distributed"])
def test_a_run_that_is_killed_is_the_one_that_was_left_alone(tmp_path: Path, layout: str) -> None:
    found = chaos(tmp_path, kills=1, seed=1, layout=layout)
    assert found["same"] and len(found["kills"]) == 1
