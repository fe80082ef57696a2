"""The short version of chaos.py; the long one is a command of its own."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.chaos import chaos
from tests.short_runs import save_wide_model


def test_a_run_that_is_killed_is_the_one_that_was_left_alone(tmp_path: Path) -> None:
    """TP2 is in tests/test_train.py, PP2 in tests/slurm/; here with tied embeddings and a distributed optimizer, whose
    state Megatron saves wrongly by itself at these sizes (megatron_rapo/mcore/bucket_padding.py)."""
    found = chaos(tmp_path, kills=1, seed=1, layout="PP2 DP2 distributed", model=save_wide_model(tmp_path / "model"))
    assert found["same"] and len(found["kills"]) == 1
