"""Four processes execute the plan over gloo, and the proof finds faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed

WORKER = Path(__file__).with_name("transfer_worker.py")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return run_distributed(WORKER, 4) or {}


def test_every_layout_bit_by_bit(results: dict[str, Any]) -> None:
    found = dict(results["transfers"])
    seconds = {name: found.pop(name) for name in list(found) if name.endswith("seconds")}
    moved = {name: found.pop(name) for name in list(found) if name.endswith("bytes")}
    assert len(found) == 6 * 2 * 2 and len(seconds) == len(moved) == 12
    assert all(found.values()), found
    assert all(value == [True, True] for value in moved.values()), moved
    assert all(value == ["engine", "proof", "transfer"] for value in seconds.values())


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # Rank 2 is tensor rank 0 of the second stage; layer 2 of five is in the first, so rank 0 sent it.
        (
            "flipped bit",
            "in 1 places: on rank 2, model.layers.2.mlp.down_proj.weight (rows 0 to 16, columns 0 to 12) is not what "
            "rank 0 has in decoder.layers.2.mlp.linear_fc2.weight.",
        ),
        (
            "skipped tensor",
            "in 1 places: on rank 1, model.layers.2.mlp.down_proj.weight (rows 0 to 16, columns 0 to 12) is not what "
            "rank 1 has in decoder.layers.2.mlp.linear_fc2.weight.",
        ),
        (
            "swapped gate and up",
            "in 4 places: on rank 0, model.layers.3.mlp.gate_up_proj.weight (rows 0 to 24, columns 0 to 16) is not "
            "what rank 2 has in decoder.layers.3.mlp.linear_fc1.weight; on rank 1, model.layers.3.mlp.gate_up_proj",
        ),
        ("another version on rank 3", "on rank 1, rank 3 sent weights of version 0 instead of 1; on rank 3, rank 1 "),
    ],
)
def test_what_goes_wrong_is_named_on_every_rank(results: dict[str, Any], fault: str, expected: str) -> None:
    messages = [of_rank[fault] for of_rank in results["faults"]]
    assert len(messages) == 4 and len(set(messages)) == 1
    assert expected in messages[0]
    assert messages[0].startswith("the engines do not hold the trainer's weights, ")


def test_nothing_is_found_where_nothing_is_wrong(results: dict[str, Any]) -> None:
    assert [of_rank["none"] for of_rank in results["faults"]] == ["no error"] * 4


def test_without_a_proof_the_same_fault_goes_unseen(results: dict[str, Any]) -> None:
    """It is the proof that finds the fault."""
    assert [of_rank["unproven"] for of_rank in results["faults"]] == ["no error"] * 4
