"""At which steps the penalty's share of the gradient is measured, and what is reckoned for it."""

import json
import random

import pytest

from megatron_rapo.gradient_share import GradientShareSchedule


def steps(every_steps, microbatches, count, *, pipeline=1):
    """Of `count` steps with these micro-batches in each optimizer step, those that are measured."""
    schedule = GradientShareSchedule(every_steps, pipeline=pipeline)
    return [step for step in range(1, count + 1) if schedule.due(step, microbatches)]


@pytest.mark.parametrize(
    ("microbatches", "pipeline", "expected"),
    [
        # A measurement: 6 * (3 + 3) = 36. A step: 2 * (3 + 3) + 2 * 2 = 16, and 20 * 36 = 45 * 16.
        ([1, 1], 1, [45, 90]),
        # A step: 3 + 3 + 2 = 8.
        ([1], 1, [90]),
        # A step: 10 * 3 + 3 + 2 * 10 = 53, and 720 / 53 = 13.6; seven of them are 95.1 steps.
        ([10], 1, [14, 28, 41, 55, 68, 82, 96]),
        # A step: 4 * (55 * 3 + 3) + 2 * 220 = 1112: at once, and not more often than every tenth.
        ([55] * 4, 1, [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]),
        # On two stages two are measured: 6 * (3 * 3 + 3) = 72. A step: 11 * 3 + 3 + 2 * 11 = 58; 1440 / 58 = 24.8.
        ([10], 2, [25, 50, 75, 100]),
        # As many stages as there are micro-batches and more: 6 * (5 * 3 + 3) = 108; a step: 5 * 3 + 3 + 2 * 5 = 28.
        ([2], 4, [78]),
    ],
)
def test_when_it_is_affordable(microbatches, pipeline, expected):
    assert steps("auto", microbatches, 100, pipeline=pipeline) == expected


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7])])
def test_a_number_of_steps(every, expected):
    assert steps(every, [1], 7) == expected


def test_the_bound_holds_at_every_step_and_a_resumed_run_measures_at_the_same_ones():
    """With micro-batches that change from step to step, and a resume after every step."""
    counts = random.Random(0)
    rollouts = [[counts.randint(1, 8) for _ in range(2)] for _ in range(300)]
    whole, resumed = (GradientShareSchedule("auto", pipeline=2) for _ in range(2))
    found = []
    for step, microbatches in enumerate(rollouts, start=1):
        state = json.loads(json.dumps(resumed.state_dict()))  # plain numbers, as a checkpoint keeps them
        resumed = GradientShareSchedule("auto", pipeline=2)
        resumed.load_state_dict(state)
        found.append(resumed.due(step, microbatches))
        assert 20 * resumed.state_dict()["spent"] <= resumed.state_dict()["work"]
    assert found == [whole.due(step, microbatches) for step, microbatches in enumerate(rollouts, start=1)]
    assert 10 <= sum(found) < 30
