from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from threading import Barrier, local
from types import SimpleNamespace

import pytest

from megatron_rapo.config import FunctionConfig, RewardConfig
from megatron_rapo.rewards import Rewards
from megatron_rapo.rewards.user_functions import RewardFunction
from megatron_rapo.rollout import Sampling, Work
from megatron_rapo.rollout import sampler as module
from megatron_rapo.rollout.requests import MAX_SEED
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.types import NOTHING, OpenGroup, Outcome, Problem, Prompt
from tests.patience import HANG_S
from tests.scripted import ScriptedEngine, ScriptedVerifier


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((0, 1, 0, 0), 0x52D1DE25),
        ((0, 1, 0, 1), 0x2D92FBA2),
        ((7, -1, 12, 3), 0x2CEFDE91),
    ],
)
def test_seeds_are_fixed_for_ever(path, expected):
    """A resumed run gets the samples that it would have had."""
    assert sampling_seed(*path) == expected


def test_seeds_are_32_bit_and_all_different():
    """65,536 draws from 2^32 have half a collision on average. More than a few would be a fault."""
    seeds = [sampling_seed(*path) for path in product(range(4), range(-1, 15), range(32), range(32))]
    assert min(seeds) >= 0 and max(seeds) < MAX_SEED == 2**32
    assert max(seeds) > 2**31 and min(seeds) < 2**20  # spread over all of them
    assert len(seeds) - len(set(seeds)) <= 3


def test_places_do_not_run_into_each_other():
    assert len({sampling_seed(*path) for path in ((1, 23, 4), (12, 3, 4), (1, 2, 34), (1, 2, 3, 4), (4, 3, 2, 1))}) == 5


# --- prompts shared out over engines; the engine and the verifier are stand-ins ---

PROMPTS = [
    Prompt(problem=Problem(id=str(i), text=f"{i}+0", answer=str(i)), text=f"{i}+0", token_ids=(i, i + 100))
    for i in range(5)
]
OWN = FunctionConfig(name="own", function="mine.py:f", range=(0.0, 1.0))
REWARDS = Rewards(RewardConfig(correct=1.0, wrong=-0.25, unformatted=-0.5))


SETTINGS = Sampling(temperature=1.0, max_completion_tokens=8)


def seed(prompt, sample):
    return 10 * prompt + sample


def texts(sampled):
    return {i: [c.text for c in completions] for i, completions in sampled.completions.items()}


@pytest.mark.parametrize(
    ("num_replicas", "replica", "mine"), [(1, 0, [0, 1, 2, 3, 4]), (2, 0, [0, 2, 4]), (2, 1, [1, 3])]
)
def test_each_engine_completes_its_share(num_replicas, replica, mine):
    sampler = Sampler(ScriptedEngine(replica=replica, num_replicas=num_replicas), ScriptedVerifier(), REWARDS)
    sampled = sampler.complete(PROMPTS, 2, SETTINGS, seed)
    assert texts(sampled) == {i: [f"{i} {10 * i}", f"{i} {10 * i + 1}"] for i in mine}
    assert sampled.whole == set(mine) and not sampler.engine.stoppable
    assert sampler.engine.sampling is SETTINGS
    assert sampled.work == Work(steps=1, prompt_tokens=8, cached_tokens=6)


# Tokens of the two completions of each prompt; its group is whole after the longer one.
LENGTHS = {0: (9, 2), 1: (3, 3), 2: (1, 5), 3: (2, 2), 4: (4, 1)}


def stopped(*, num_replicas=1, replica=0, **options):
    """Return a sampler with such an engine, and what it has when it stops."""
    engine = ScriptedEngine(lambda i, s: LENGTHS[i][s % 10], num_replicas=num_replicas, replica=replica)
    sampler = Sampler(engine, ScriptedVerifier(), REWARDS)
    groups = [OpenGroup(prompt=prompt, completions=(NOTHING, NOTHING)) for prompt in PROMPTS]
    return sampler, sampler.go_on(groups, SETTINGS, seed, **options)


@pytest.mark.parametrize(
    ("options", "steps", "whole"),
    [
        ({"wanted": 1}, 2, {3}),
        ({"wanted": 2}, 3, {1, 3}),
        ({"wanted": 4}, 5, {1, 2, 3, 4}),
        ({"wanted": 2, "awaited": 1}, 9, {0, 1}),  # all are whole by then, and the first are taken
        ({"wanted": 2, "awaited": 2}, 9, {0, 1}),
        ({"wanted": 2, "num_replicas": 2, "replica": 0}, 4, {4}),  # one of 0, 2 and 4
        ({"wanted": 2, "num_replicas": 2, "replica": 1}, 2, {3}),  # one of 1 and 3
        ({"wanted": 2, "awaited": 1, "num_replicas": 2, "replica": 1}, 2, {3}),  # the other engine's is awaited
        ({"wanted": 4, "awaited": 1, "num_replicas": 2, "replica": 0}, 9, {0, 2}),
    ],
)
def test_an_engine_stops_when_it_has_its_share(options, steps, whole):
    sampler, sampled = stopped(**options)
    assert sampler.engine.steps == steps and sampler.engine.stoppable and sampled.whole == whole
    for i, completions in sampled.completions.items():
        lengths = [min(length, steps) for length in LENGTHS[i]]
        assert [(len(c.token_ids), c.finished) for c in completions] == [
            (have, have == length) for have, length in zip(lengths, LENGTHS[i], strict=True)
        ]


def test_a_completion_is_judged_once_and_as_soon_as_it_is_finished():
    """Taken groups have verdicts. Of other groups, another call continues the partial rollouts."""
    sampler, sampled = stopped(wanted=2)
    assert [text for text, _ in sampler.verifier.judged] == ["2 20", "4 41", *("0 1", "3 30", "3 31"), "1 10", "1 11"]
    assert {i: [v.outcome.value for v in found] for i, found in sampled.verdicts().items()} == {
        1: ["correct", "wrong"],
        3: ["correct", "wrong"],
    }
    groups = [OpenGroup(prompt=PROMPTS[i], completions=sampled.completions[i]) for i in (0, 2, 4)]
    sampler.verifier.judged, sampler.engine.asked, sampler.engine.weight_version = [], [], 1
    again = sampler.go_on(groups, SETTINGS, lambda i, j: 100 + j, wanted=3)
    assert sampler.engine.asked == [(0, 100), (2, 101), (4, 100)]  # what was finished is not asked for
    assert [text for text, _ in sampler.verifier.judged] == ["0 1", "2 20", "4 41", "4 100", "2 101", "0 100"]
    assert [[c.spans for c in of_group] for of_group in again.completions.values()] == [
        [((0, 3), (1, 9)), ((0, 2),)],
        [((0, 1),), ((0, 3), (1, 5))],
        [((0, 3), (1, 4)), ((0, 1),)],
    ]


def test_judging_is_shared_out_and_the_same_everywhere(monkeypatch):
    """2 engines have 2 processes (here threads) each. Each judges a share, and gets all groups in order.

    The user's function returns a different value on each. All get the value from where a group was judged.
    """
    parts, all_there, this = {}, Barrier(4, timeout=HANG_S), local()

    def all_gather_object(everyone, mine):
        parts[this.rank] = mine
        all_there.wait()
        everyone[:] = [parts[rank] for rank in range(4)]

    def process(rank):
        this.rank = rank
        engine = ScriptedEngine(replica=rank // 2, num_replicas=2, rank_in_replica=rank % 2, replica_size=2)
        own = RewardFunction(settings=OWN, function=lambda problem, completion, verdict: rank / 4)
        sampler = Sampler(engine, ScriptedVerifier(), replace(REWARDS, functions=(own,)))
        return sampler.judge(sampler.complete(PROMPTS, 2, SETTINGS, seed)), len(sampler.verifier.judged)

    fake = SimpleNamespace(get_world_size=lambda: 4, all_gather_object=all_gather_object)
    monkeypatch.setattr(module, "dist", fake)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(process, range(4)))

    assert [sorted(parts[rank]) for rank in range(4)] == [[0, 4], [2], [1], [3]]
    assert [judged for _, judged in found] == [4, 2, 2, 2]
    for groups, _ in found:
        assert [group.prompt for group in groups] == PROMPTS
        assert {group.weight_version for group in groups} == {0}
        for i, group in enumerate(groups):
            assert [c.text for c in group.completions] == [f"{i} {10 * i}", f"{i} {10 * i + 1}"]
            assert [v.outcome for v in group.verdicts] == [Outcome.CORRECT, Outcome.WRONG]
            judge = {0: 0, 4: 0, 2: 1, 1: 2, 3: 3}[i]
            assert group.terms == {
                "correctness": (1.0, 0.0 if i == 0 else -0.25),
                "format": (0.0, -0.5 if i == 0 else 0.0),
                "own": (judge / 4, judge / 4),
            }
            assert group.rewards == (1.0 + judge / 4, (-0.5 if i == 0 else -0.25) + judge / 4)


def test_completions_that_nothing_is_learnt_from_have_no_rewards(monkeypatch):
    def all_gather_object(everyone, mine):
        everyone[:] = [mine]

    monkeypatch.setattr(module, "dist", SimpleNamespace(get_world_size=lambda: 1, all_gather_object=all_gather_object))
    own = RewardFunction(settings=OWN, function=lambda *_: pytest.fail("it was asked"))
    sampler = Sampler(ScriptedEngine(), ScriptedVerifier(), replace(REWARDS, functions=(own,)))
    groups = sampler.verify(sampler.complete(PROMPTS, 2, SETTINGS, seed))
    assert [[v.outcome for v in group.verdicts] for group in groups] == [[Outcome.CORRECT, Outcome.WRONG]] * 5
    assert [(group.prompt, group.rewards, group.terms) for group in groups] == [(prompt, (), {}) for prompt in PROMPTS]
