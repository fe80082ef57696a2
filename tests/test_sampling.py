from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from threading import Barrier, local
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_rapo import sampling
from megatron_rapo.config import FunctionConfig, RewardConfig
from megatron_rapo.rewards import Rewards
from megatron_rapo.rewards.functions import RewardFunction
from megatron_rapo.rollout import Sampling
from megatron_rapo.rollout.engine import MAX_SEED
from megatron_rapo.sampling import Sampler, sampling_seed
from megatron_rapo.types import Completion, Outcome, Problem, Prompt, Verdict


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((0, 1, 0, 0), 0x52D1DE25),
        ((0, 1, 0, 1), 0x2D92FBA2),
        ((7, -1, 12, 3), 0x2CEFDE91),
    ],
)
def test_seeds_are_fixed_for_ever(path, expected):
    """A run resumes with the samples that it would have had."""
    assert sampling_seed(*path) == expected


def test_seeds_are_32_bit_and_all_different():
    """65 536 draws of 2^32: about half a collision is expected, so more than a few would be a flaw."""
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


def completion(text):
    return Completion(token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32), text=text, truncated=False)


class Engine:
    """Answers prompt i with seed s by the text "i s"."""

    def __init__(self, *, replica=0, num_replicas=1, rank_in_replica=0, replica_size=1):
        self.replica, self.num_replicas = replica, num_replicas
        self.rank_in_replica, self.replica_size = rank_in_replica, replica_size

    def generate(self, prompts, sampling, *, seeds):
        self.sampling = sampling
        return [completion(f"{ids[0]} {seed}") for ids, seed in zip(prompts, seeds, strict=True)]


class Verifier:
    """An answer is right where its seed is even, and has no box where it is 1; remembers what it judged."""

    def __init__(self):
        self.judged = []

    def judge_all(self, pairs):
        self.judged += pairs
        return [self.judge(*pair) for pair in pairs]

    def judge(self, text, answer):
        prompt, seed = map(int, text.split())
        assert str(prompt) == answer
        right = seed % 2 == 0
        return Verdict(outcome=Outcome.CORRECT if right else Outcome.WRONG, formatted=seed != 1)


SETTINGS = Sampling(temperature=1.0, max_completion_tokens=8)


def seed(prompt, sample):
    return 10 * prompt + sample


@pytest.mark.parametrize(
    ("num_replicas", "replica", "mine"), [(1, 0, [0, 1, 2, 3, 4]), (2, 0, [0, 2, 4]), (2, 1, [1, 3])]
)
def test_each_engine_completes_its_share(num_replicas, replica, mine):
    sampler = Sampler(Engine(replica=replica, num_replicas=num_replicas), Verifier(), REWARDS)
    found = sampler.complete(PROMPTS, 2, SETTINGS, seed)
    assert {i: [c.text for c in completions] for i, completions in found.items()} == {
        i: [f"{i} {10 * i}", f"{i} {10 * i + 1}"] for i in mine
    }
    assert sampler.engine.sampling is SETTINGS


def test_judging_is_shared_out_and_the_same_everywhere(monkeypatch):
    """2 engines of 2 processes, here threads: each has all groups in the prompts' order, having judged a share.

    The user's function says something else on each of them, and all get to know what it said where a group was judged.
    """
    parts, all_there, this = {}, Barrier(4, timeout=20), local()

    def all_gather_object(everyone, mine):
        parts[this.rank] = mine
        all_there.wait()
        everyone[:] = [parts[rank] for rank in range(4)]

    def process(rank):
        this.rank = rank
        engine = Engine(replica=rank // 2, num_replicas=2, rank_in_replica=rank % 2, replica_size=2)
        own = RewardFunction(settings=OWN, function=lambda problem, completion, verdict: rank / 4)
        sampler = Sampler(engine, Verifier(), replace(REWARDS, functions=(own,)))
        return sampler.judge(PROMPTS, sampler.complete(PROMPTS, 2, SETTINGS, seed)), len(sampler.verifier.judged)

    fake = SimpleNamespace(get_world_size=lambda: 4, all_gather_object=all_gather_object)
    monkeypatch.setattr(sampling, "dist", fake)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(process, range(4)))

    assert [sorted(parts[rank]) for rank in range(4)] == [[0, 4], [2], [1], [3]]
    assert [judged for _, judged in found] == [4, 2, 2, 2]
    for groups, _ in found:
        assert [group.prompt for group in groups] == PROMPTS
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

    monkeypatch.setattr(
        sampling, "dist", SimpleNamespace(get_world_size=lambda: 1, all_gather_object=all_gather_object)
    )
    own = RewardFunction(settings=OWN, function=lambda *_: pytest.fail("it was asked"))
    sampler = Sampler(Engine(), Verifier(), replace(REWARDS, functions=(own,)))
    groups = sampler.verify(PROMPTS, sampler.complete(PROMPTS, 2, SETTINGS, seed))
    assert [[v.outcome for v in group.verdicts] for group in groups] == [[Outcome.CORRECT, Outcome.WRONG]] * 5
    assert [(group.prompt, group.rewards, group.terms) for group in groups] == [(prompt, (), {}) for prompt in PROMPTS]
