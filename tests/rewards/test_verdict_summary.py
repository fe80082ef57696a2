"""Tests of the summary and the warnings that a run prints before it trains on completions."""

import numpy as np
import pytest

from megatron_rapo.rewards.verdict_summary import TOO_MANY, Judged, SignalWatch, warnings
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Verdict

PROMPT = Prompt(problem=Problem(id="a", text="?", answer="4"), text="?", token_ids=(5,))


def judged(truncated=0, **verdicts):
    """Return counts of 100 completions. Those not named are wrong."""
    counts = {outcome.value: 0 for outcome in Outcome} | verdicts
    counts["wrong"] += 100 - sum(counts.values())
    return Judged(verdicts=counts, truncated=truncated, limit="rollout.max_completion_tokens=512")


def group(*outcomes, truncated=0):
    """Return a group with a completion of each outcome, of which the first `truncated` are cut off."""
    completions = tuple(
        Completion(token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32), text="", truncated=i < truncated)
        for i in range(len(outcomes))
    )
    verdicts = tuple(Verdict(outcome=o, formatted=o is not Outcome.NO_ANSWER) for o in outcomes)
    return Group(prompt=PROMPT, completions=completions, verdicts=verdicts)


R, W, N, T = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.TIMEOUT


def test_every_verdict_has_its_share(load):
    groups = [group(R, R, W, N, truncated=1), group(W, T, N, N, truncated=2)]
    found = Judged.of(groups, load())
    assert found.verdicts == {o.value: {R: 2, W: 2, N: 3, T: 1}.get(o, 0) for o in Outcome}
    said = str(found)
    assert said.startswith(
        "8 completions: 25.0% correct, 25.0% wrong, 0.0% unevaluated, 37.5% no answer, 0.0% unparsable"
    )
    assert said.endswith("; 37.5% cut off by rollout.max_completion_tokens=512") and ", 12.5% timeout" in said
    assert all(f"% {outcome.value.replace('_', ' ')}" in said for outcome in Outcome)


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        (judged(correct=1), []),
        (judged(correct=100), []),
        (judged(), ["none_right"]),
        (judged(correct=1, no_answer=50), []),
        (judged(correct=1, no_answer=51), ["no_answer"]),
        (judged(correct=1, truncated=20), []),
        (judged(correct=1, truncated=21), ["truncated"]),
        (judged(correct=1, unparsable=21), ["unparsable"]),
        (judged(correct=1, timeout=6), ["timeout"]),
        (judged(correct=1, unevaluated=21), ["unevaluated"]),
        (judged(no_answer=100, truncated=98), ["truncated", "no_answer", "none_right"]),
    ],
)
def test_what_is_off(load, found, kinds):
    assert list(warnings(found, load())) == kinds


def test_a_warning_says_how_many_and_names_the_settings(load):
    found = warnings(judged(no_answer=100, truncated=98, timeout=0), load("data.template=abel"))
    assert found["no_answer"].startswith("100.0% of the completions have no answer in the form that is judged. ")
    assert "data.template=abel" in found["no_answer"] and "reward.answer" in found["no_answer"]
    assert found["truncated"] == (
        "98.0% of the completions were cut off by rollout.max_completion_tokens=512, mostly before their answer. Raise "
        "this limit, or make the model stop (rollout.stop)."
    )
    late = warnings(judged(correct=1, timeout=50), load())["timeout"]
    assert "reward.timeout_s=5.0, reward.budget_s=120.0 or reward.workers=auto" in late


def test_every_verdict_that_can_be_too_many_has_a_remedy(load):
    for kind in TOO_MANY:
        assert kind in warnings(judged(**{kind: 100}), load())


def look(load, *steps):
    """Return the messages about these steps, each (groups, number of groups with signal)."""
    said = []
    watch = SignalWatch(load("batch.completions_per_prompt=2"), said.append)
    for step, (groups, with_signal) in enumerate(steps, start=1):
        watch.look(step, groups, with_signal)
    return said


def test_the_first_rollout_is_always_told(load):
    [said] = look(load, ([group(R, W), group(W, W)], 1), ([group(R, W)], 1))
    assert said.startswith("first rollout, 4 completions: 25.0% correct, 75.0% wrong, 0.0% unevaluated, 0.0% no answer")
    assert said.endswith("; 1 of 2 groups with different rewards")


def test_what_is_off_is_told_once_and_when_it_begins(load):
    good, without_answer = ([group(R, W)], 1), ([group(N, N), group(N, R)], 1)
    first, *said = look(load, good, without_answer, good, without_answer)
    assert first.startswith("first rollout") and len(said) == 1
    assert said[0].startswith("WARNING: 75.0% of the completions have no answer")


@pytest.mark.parametrize(
    ("groups", "right", "remedy"),
    [
        (
            [group(W, W), group(W, W)],
            "0.0%",
            "Fix the causes of other warnings first. Then choose easier problems, or raise "
            "batch.completions_per_prompt=2.",
        ),
        ([group(R, R), group(R, R)], "100.0%", "Choose harder problems."),
    ],
)
def test_rewards_that_are_all_equal(load, groups, right, remedy):
    _, said = look(load, (groups, 0))
    assert said.startswith(f"WARNING: no group of step 1 has different rewards ({right} of the completions are right)")
    assert f"all advantages are 0, and only the penalty and the entropy bonus train. {remedy}" in said


def test_masked_completions_are_named_where_no_group_has_signal(load):
    said = []
    watch = SignalWatch(load("algorithm.overlong=mask"), said.append)
    watch.look(2, [group(R, W, truncated=1)], 0)
    assert "(50.0% of the completions are right; those cut off are masked, algorithm.overlong=mask)" in said[-1]
