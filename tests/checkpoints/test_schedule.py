"""The steps after which a run is saved, with a fake clock. In a world of one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from megatron_rapo.checkpoints.schedule import Due, SaveSchedule
from megatron_rapo.config import CheckpointConfig


@pytest.fixture(autouse=True)
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def saved(settings: dict[str, float], minutes_per_step: float) -> dict[int, Due]:
    """Return which of ten steps are saved, and why."""
    now = [0.0]
    schedule = SaveSchedule(CheckpointConfig.model_validate(settings), 10, clock=lambda: now[0])
    found = {}
    for step in range(1, 11):
        now[0] += 60 * minutes_per_step
        if due := schedule.due(step):
            found[step] = due
            schedule.saved()
    return found


@pytest.mark.parametrize(
    ("settings", "minutes_per_step", "by_time", "by_steps"),
    [
        ({"every_minutes": 0.0}, 1000.0, [], [10]),
        ({}, 2.0, [], [10]),  # 20 minutes
        ({}, 10.0, [3, 6, 9], [10]),
        ({}, 40.0, [1, 2, 3, 4, 5, 6, 7, 8, 9], [10]),
        ({"every_steps": 4}, 10.0, [3, 7], [4, 8, 10]),  # minutes count from the last save of either kind
        ({"every_steps": 2}, 10.0, [], [2, 4, 6, 8, 10]),
    ],
)
def test_steps_that_are_saved(
    settings: dict[str, float], minutes_per_step: float, by_time: list[int], by_steps: list[int]
) -> None:
    expected = dict.fromkeys(by_time, Due.TIME) | dict.fromkeys(by_steps, Due.STEPS)
    assert saved(settings, minutes_per_step) == expected


def test_beyond_the_end_every_step_is() -> None:
    schedule = SaveSchedule(CheckpointConfig(), 10)
    assert [schedule.due(step) for step in (9, 10, 11)] == [None, Due.STEPS, Due.STEPS]
