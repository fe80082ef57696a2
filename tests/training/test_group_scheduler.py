"""Check which groups a step trains on if a rollout does not wait for the slowest, and what happens to these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import BytesIO

import pytest
import torch
import torch.distributed as dist

from megatron_rapo.config import RewardConfig
from megatron_rapo.data import EpochOrder
from megatron_rapo.monitor import Monitor
from megatron_rapo.monitor.scalars import SCALARS
from megatron_rapo.rewards import Rewards
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.training.group_scheduler import Begun, GroupScheduler
from megatron_rapo.types import NOTHING, Problem, Prompt
from tests.scripted import ScriptedEngine, ScriptedVerifier

RUN_SEED, GROUP = 11, 3
PROMPTS = [Prompt(problem=Problem(id=str(i), text="", answer=str(i)), text="", token_ids=(i,)) for i in range(500)]


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def begin(load, *overrides, length=lambda _, seed: 1 + seed % 40, prompts=PROMPTS):
    """Begin rollouts of four groups of three. Most groups have a long completion."""
    settings = [f"batch.completions_per_prompt={GROUP}", "batch.prompts_per_step=4", f"run.seed={RUN_SEED}"]
    sampler = Sampler(ScriptedEngine(length), ScriptedVerifier(), Rewards(RewardConfig()))
    return GroupScheduler(load(*settings, *overrides), sampler=sampler, monitor=Monitor(), prompts=prompts), sampler


def roll_out(rollouts, sampler, step):
    """Return the rollout of a step. The version of the weights is the number of steps before it."""
    sampler.engine.weight_version = step - 1
    return rollouts.next(step)


def drawn(count):
    return [str(i) for i in EpochOrder(len(PROMPTS), RUN_SEED).take(count)]


def ids(groups):
    return [group.prompt.problem.id for group in groups]


def ages(group, step):
    """Return the age in steps of the weights that sampled each token of each completion."""
    return [
        step - 1 - span.weight_version for c in group.completions for span in c.spans for _ in range(span.num_tokens)
    ]


@pytest.mark.parametrize("carried_steps", [1, 2, 3])
@pytest.mark.parametrize("dynamic_sampling_rounds", [0, 2])
def test_what_is_carried_is_trained_on_once_and_in_time(load, carried_steps, dynamic_sampling_rounds) -> None:
    rollouts, sampler = begin(
        load,
        *(
            "batch.oversampled_prompts=3",
            f"batch.partial_rollout_steps={carried_steps}",
            f"batch.dynamic_sampling_rounds={dynamic_sampling_rounds}",
        ),
    )
    whole, oldest = [], 0
    for step in range(1, 31):
        rollout = roll_out(rollouts, sampler, step)
        assert len(rollout.groups) == 4 and len(rollout.sampled) >= 4
        whole += ids(rollout.sampled)
        oldest = max(oldest, *(age for group in rollout.groups for age in ages(group, step)))
        state = rollouts.state_dict()
        assert len(state["begun"]) == 3 and min(each["step"] for each in state["begun"]) > step - carried_steps
        for group in rollout.groups:
            for c in group.completions:  # the engine's log-probabilities are the versions that they are of
                assert c.logprobs.tolist() == [v for v, n in c.spans for _ in range(n)]
    waiting = {str(each["prompt"]) for each in rollouts.state_dict()["begun"]}
    assert len(set(whole)) == len(whole) and set(whole) | waiting == set(drawn(len(whole) + 3))
    assert oldest == carried_steps  # the limit is kept, and was reached


@pytest.mark.parametrize("carried_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("dynamic_sampling_rounds", [0, 2])
def test_no_problem_is_in_a_step_twice(load, carried_steps, dynamic_sampling_rounds) -> None:
    """With the minimum number of problems, every step crosses the end of an epoch and has groups of the step before."""
    spare = 3
    settings = f"batch.oversampled_prompts={spare}", f"batch.dynamic_sampling_rounds={dynamic_sampling_rounds}"
    prompts = PROMPTS[: 4 * (1 + dynamic_sampling_rounds) + spare]
    rollouts, sampler = begin(load, *settings, f"batch.partial_rollout_steps={carried_steps}", prompts=prompts)
    times = Counter()
    for step in range(1, 61):
        carried = {each["prompt"] for each in rollouts.state_dict()["begun"]}
        found = ids(roll_out(rollouts, sampler, step).sampled)
        waiting = [str(each["prompt"]) for each in rollouts.state_dict()["begun"]]
        assert len({*found, *waiting}) == len(found) + len(waiting)
        assert {str(prompt) for prompt in carried} <= {*found, *waiting}
        times.update(found)
    if carried_steps:  # nothing is dropped: what is not seen yet as often as the others waits or is put off
        state = rollouts.state_dict()
        times.update(str(each["prompt"]) for each in state["begun"])
        times.update(map(str, state["order"]["put_off"]))
        assert max(times.values()) - min(times.values()) <= 1


def test_what_is_dropped_is_not_seen_again(load) -> None:
    rollouts, sampler = begin(load, "batch.oversampled_prompts=2", "batch.partial_rollout_steps=0")
    trained, tokens = [], []
    for step in range(1, 21):
        rollout = roll_out(rollouts, sampler, step)
        trained += ids(rollout.groups)
        assert {age for group in rollout.groups for age in ages(group, step)} == {0}
        assert rollout.scalars["rollout/dropped_groups"] == 2 and rollouts.state_dict()["begun"] == []
        tokens.append(rollout.scalars["rollout/dropped_tokens"])
        assert not any("carried" in name or "stale" in name for name in rollout.scalars)
    assert len(set(trained)) == 80 and set(trained) < set(drawn(120))
    assert min(tokens) > 0


def test_scalars_and_seeds_by_hand(load) -> None:
    """The first step takes four groups of six. The third and the sixth prompt are slow."""
    order = drawn(10)
    slow = {int(order[2]): 20, int(order[5]): 7}
    rollouts, sampler = begin(load, "batch.oversampled_prompts=2", length=lambda prompt, _: slow.get(prompt, 2))
    first = roll_out(rollouts, sampler, 1)
    assert ids(first.groups) == [order[i] for i in (0, 1, 3, 4)]
    assert first.scalars == {
        "rollout/decode_steps": 2,
        "rollout/prefix_cached": 0.75,
        "rollout/carried_groups": 2,
        "rollout/carried_tokens": 2 * GROUP * 2,
        "rollout/stale_tokens": 0.0,
        "rollout/stale_steps": 0.0,
    }
    assert sampler.engine.asked == [
        (int(order[i]), sampling_seed(RUN_SEED, 1, i, j)) for i in range(6) for j in range(GROUP)
    ]
    sampler.engine.asked.clear()
    second = roll_out(rollouts, sampler, 2)  # the slow ones, which are waited for, and two of the next four
    assert ids(second.groups) == [order[i] for i in (2, 5, 6, 7)]
    assert sampler.engine.asked == [
        (int(order[i]), sampling_seed(RUN_SEED, 2, place, j))
        for place, i in enumerate((2, 5, 6, 7, 8, 9))
        for j in range(GROUP)
    ]
    assert second.scalars["rollout/decode_steps"] == 20
    stale, trained = 2 * GROUP * 2, GROUP * ((2 + 20) + (2 + 7) + 2 + 2)
    assert second.scalars["rollout/stale_tokens"] == stale / trained and second.scalars["rollout/stale_steps"] == 1.0
    assert second.scalars["rollout/carried_tokens"] == 2 * GROUP * 2  # whole already, and one more step old
    third = roll_out(rollouts, sampler, 3)
    assert ids(third.groups)[:2] == order[8:10] and third.scalars["rollout/stale_tokens"] == 0.5
    assert {*first.scalars, "rollout/dropped_groups", "rollout/dropped_tokens"} <= SCALARS.keys()


@pytest.mark.parametrize("carried_steps", [0, 1, 2])
def test_it_goes_on_from_its_state(load, carried_steps) -> None:
    settings = "batch.oversampled_prompts=3", f"batch.partial_rollout_steps={carried_steps}"
    rollouts, sampler = begin(load, *settings)
    for step in range(1, 6):
        roll_out(rollouts, sampler, step)
    file = BytesIO()
    torch.save(rollouts.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    others, their_sampler = begin(load, *settings)
    others.load_state_dict(state)
    for step in range(6, 12):
        ours, theirs = roll_out(rollouts, sampler, step), roll_out(others, their_sampler, step)
        assert ours.scalars == theirs.scalars
        assert [plainly(group) for group in ours.groups] == [plainly(group) for group in theirs.groups]


def test_a_group_of_which_there_is_no_token_yet_is_kept() -> None:
    """torch does not load empty bytes."""
    file = BytesIO()
    torch.save(Begun(prompt=3, step=2, completions=(NOTHING,) * GROUP).state_dict(), file)
    file.seek(0)
    found = Begun.from_state_dict(torch.load(file, weights_only=True))
    assert (found.prompt, found.step, found.num_tokens) == (3, 2, 0)
    assert [(len(c.logprobs), c.spans, c.finished) for c in found.completions] == [(0, (), False)] * GROUP


def plainly(group):
    completions = [(c.token_ids.tolist(), c.logprobs.tolist(), c.text, c.spans) for c in group.completions]
    return group.prompt.problem.id, completions, group.rewards, group.verdicts


def test_no_step_trains_on_tokens_of_unknown_weights(load) -> None:
    """The weights were never loaded, are of a later step, or are older than any carried group."""
    rollouts, sampler = begin(load, "batch.oversampled_prompts=2")
    roll_out(rollouts, sampler, 1)
    for version in (None, 3, 0):
        sampler.engine.weight_version = version
        with pytest.raises(AssertionError, match="groups of another step"):
            rollouts.next(2)
    rollouts, sampler = begin(load, "batch.oversampled_prompts=2")
    roll_out(rollouts, sampler, 1)
    with pytest.raises(AssertionError, match=r"sampled from weights \[0\], not from \[3, 4\]"):
        roll_out(rollouts, sampler, 5)
