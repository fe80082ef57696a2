"""Check at which steps the penalty's share of the gradient is measured, and the estimated cost."""

import json
import random

import pytest

from megatron_rapo.training.gradient_share import GradientShareSchedule

ALL, WHOLE = ("", "/low_reward", "/high_reward"), ("",)


def measured(every_steps, microbatches, count, *, pipeline=1):
    """Return the measurements of `count` steps with these micro-batches in each optimizer step, by step."""
    schedule = GradientShareSchedule(every_steps, pipeline=pipeline)
    found = {step: schedule.due(step, microbatches) for step in range(1, count + 1)}
    return {step: wanted for step, wanted in found.items() if wanted}


@pytest.mark.parametrize(
    ("microbatches", "pipeline", "expected"),
    [
        # Of all tokens: 2 * (3 + 3) = 12, and three times that by reward too. A step: 2 * (3 + 3) + 2 * 2 = 16.
        ([1, 1], 1, {15: WHOLE, 30: WHOLE, 45: WHOLE, 60: WHOLE}),  # 20 * 12 = 15 * 16
        ([1], 1, {30: WHOLE, 60: WHOLE}),  # a step: 3 + 3 + 2 = 8
        # A step: 10 * 3 + 3 + 2 * 10 = 53, so 240 / 53 = 4.5. Measured every tenth, there is something left each time:
        # at step 25 the work is 1325 and 240 * 2 are spent, which leaves 845 for 720.
        ([10], 1, {5: WHOLE, 15: WHOLE, 25: ALL, 35: WHOLE, 45: ALL, 55: ALL}),
        # A step: 4 * (55 * 3 + 3) + 2 * 220 = 1112: at once.
        ([55] * 4, 1, {1: ALL, 11: ALL, 21: ALL, 31: ALL, 41: ALL, 51: ALL}),
        # On two stages two are measured: 2 * (3 * 3 + 3) = 24. A step: 11 * 3 + 3 + 2 * 11 = 58; 480 / 58 = 8.3.
        ([10], 2, {9: WHOLE, 19: WHOLE, 29: WHOLE, 39: WHOLE, 49: WHOLE, 59: WHOLE}),
        # As many stages as there are micro-batches and more: 2 * (5 * 3 + 3) = 36; a step: 5 * 3 + 3 + 2 * 5 = 28.
        ([2], 4, {26: WHOLE, 52: WHOLE}),  # 720 / 28 = 25.7
    ],
)
def test_what_is_affordable(microbatches, pipeline, expected):
    assert measured("auto", microbatches, 60, pipeline=pipeline) == expected


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7])])
def test_a_number_of_steps(every, expected):
    assert measured(every, [1], 7) == dict.fromkeys(expected, ALL)


def test_the_bound_holds_at_every_step_and_a_resumed_run_measures_at_the_same_ones():
    """Micro-batches change from step to step. The second run resumes after every step."""
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
    assert found.count(ALL) > 2 and found.count(WHOLE) > 5 and found.count(()) > 250
