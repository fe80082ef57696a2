"""Tests of what is due every N steps."""

from __future__ import annotations

import pytest

from megatron_rapo.runtime.interval import is_due


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (0, []),  # turned off, at step 0 too
        (1, [0, 1, 2, 3, 4, 5, 6]),
        (3, [0, 3, 6]),
        (6, [0, 6]),
        (7, [0]),
    ],
)
def test_multiples_are_due(every: int, steps: list[int]) -> None:
    assert [step for step in range(7) if is_due(step, every)] == steps


def test_due_is_a_truth_value() -> None:
    assert is_due(4, 2) is True and is_due(5, 2) is False and is_due(5, 0) is False
