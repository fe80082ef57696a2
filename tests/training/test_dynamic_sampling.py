"""Check which groups a step trains on if groups with equal rewards are replaced (DAPO's dynamic sampling)."""

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_rapo.data import EpochOrder
from megatron_rapo.monitor import Monitor
from megatron_rapo.rollout import Work
from megatron_rapo.rollout.sampler import sampling_seed
from megatron_rapo.training.group_scheduler import GroupScheduler
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Span, Verdict

STEP, RUN_SEED = 3, 11
REWARDS = {"S": (0.0, 0.0, 1.0), ".": (1.0, 1.0, 1.0), "r": (0.3, 0.1 + 0.2, 0.3), "t": (0.0, 0.0, 1.0)}


class Sampler:
    """Engines and verifiers that only record their calls. Group i has signal if signals[i] is "S".

    "r": its rewards differ by rounding. "t": they differ only by the reward of a truncated completion.
    """

    def __init__(self, num_engines, signals):
        self.engine = SimpleNamespace(num_replicas=num_engines)
        self.signals = list(signals)
        self.rounds, self.seeds = [], []  # prompts of each call; seeds of each draw

    def go_on(self, groups, sampling, seed, *, wanted, awaited):
        assert wanted is None and awaited == 0  # nobody asked for spare prompts
        self.rounds.append([group.prompt.problem.id for group in groups])
        self.seeds += [[seed(i, j) for j in range(len(group.completions))] for i, group in enumerate(groups)]
        return SimpleNamespace(prompts=[group.prompt for group in groups], work=Work(2, 4, 3))

    def judge(self, sampled):
        verdict = Verdict(outcome=Outcome.WRONG, formatted=True)
        return [
            Group(
                prompt=prompt,
                completions=(completion(), completion(), completion(truncated=kind == "t")),
                verdicts=(verdict,) * 3,
                rewards=REWARDS[kind],
                weight_version=STEP - 1,
            )
            for prompt in sampled.prompts
            for kind in [self.signals.pop(0)]
        ]


def completion(truncated=False):
    return Completion(
        token_ids=np.zeros(1, np.int32),
        logprobs=np.zeros(1, np.float32),
        text="",
        spans=(Span(STEP - 1, 1),),
        truncated=truncated,
    )


def prompts_of(count):
    return [Prompt(problem=Problem(id=str(i), text="", answer=""), text="", token_ids=(i,)) for i in range(count)]


def roll_out(load, signals, *, dynamic_sampling_rounds, num_engines=1, overlong="keep"):
    """Return a step's rollout of four groups of three, its sampler, and the state of the data order."""
    config = load(
        *(
            "batch.prompts_per_step=4",
            "batch.completions_per_prompt=3",
            f"batch.dynamic_sampling_rounds={dynamic_sampling_rounds}",
        ),
        *(f"run.seed={RUN_SEED}", f"algorithm.overlong={overlong}"),
    )
    sampler = Sampler(num_engines, signals)
    rollouts = GroupScheduler(config, sampler=sampler, monitor=Monitor(), prompts=prompts_of(100))
    rollout = rollouts.next(STEP)
    assert not sampler.signals  # nothing was drawn that the case does not list, and all of it was
    assert rollout.scalars == {"rollout/decode_steps": 2 * len(sampler.rounds), "rollout/prefix_cached": 0.75}
    return rollout, sampler, rollouts.state_dict()["order"]


@pytest.mark.parametrize(
    ("dynamic_sampling_rounds", "num_engines", "rounds", "chosen"),
    [
        (0, 1, ["S..S"], [0, 1, 2, 3]),  # as they were sampled
        (0, 2, ["...."], [0, 1, 2, 3]),
        (2, 1, ["SSSS"], [0, 1, 2, 3]),  # nothing is missing
        (1, 1, ["S..S", "SS"], [0, 3, 4, 5]),
        (2, 1, ["SS..", ".S", "S"], [0, 1, 5, 6]),  # until there are enough
        (1, 1, ["SS..", ".S"], [0, 1, 2, 5]),  # or no more rounds: then the first without signal fill up, in place
        (3, 1, ["....", "....", "....", "...."], [0, 1, 2, 3]),
        (1, 2, ["SS.S", "SS"], [0, 1, 3, 4]),  # one for each engine: one too many, the last
        (1, 2, ["SS.S", ".S"], [0, 1, 3, 5]),
        (1, 4, ["S.S.", "...S"], [0, 1, 2, 7]),
        (2, 4, ["S.S.", "...S", "S..."], [0, 2, 7, 8]),
    ],
)
def test_groups_without_signal_are_replaced(load, dynamic_sampling_rounds, num_engines, rounds, chosen):
    signals = "".join(rounds)
    rollout, sampler, order = roll_out(
        load, signals, dynamic_sampling_rounds=dynamic_sampling_rounds, num_engines=num_engines
    )
    drawn = [str(i) for i in EpochOrder(100, RUN_SEED).take(len(signals))]
    assert [len(asked) for asked in sampler.rounds] == [len(each) for each in rounds]
    assert [i for asked in sampler.rounds for i in asked] == drawn  # the next problems, each once
    assert [group.prompt.problem.id for group in rollout.sampled] == drawn
    assert [group.prompt.problem.id for group in rollout.groups] == [drawn[i] for i in chosen]
    assert [len(set(group.rewards)) > 1 for group in rollout.groups] == [signals[i] == "S" for i in chosen]
    assert order["position"] == len(signals)  # where the next step goes on
    # Every draw has seeds of its own: they go on counting from round to round.
    expected = [[sampling_seed(RUN_SEED, STEP, i, j) for j in range(3)] for i in range(len(signals))]
    assert sampler.seeds == expected and len({s for seeds in expected for s in seeds}) == 3 * len(signals)


@pytest.mark.parametrize(
    ("overlong", "rounds", "chosen"),
    [
        ("keep", ["tSrS", "S"], "0134"),
        ("mask", ["tSrS", "SS"], "1345"),
        ("mask", ["tSrS", ".."], "0123"),  # not enough: the first without signal fill up
        ("mask_keep_baseline", ["tSrS", "S"], "0134"),
    ],
)
def test_rounding_and_masked_completions_are_no_signal(load, overlong, rounds, chosen):
    rollout, sampler, _ = roll_out(load, "".join(rounds), dynamic_sampling_rounds=1, overlong=overlong)
    assert [len(asked) for asked in sampler.rounds] == [len(each) for each in rounds]
    drawn = [str(i) for i in EpochOrder(100, RUN_SEED).take(6)]
    assert [group.prompt.problem.id for group in rollout.groups] == [drawn[int(i)] for i in chosen]


def test_rounds_across_the_end_of_an_epoch_have_no_problem_twice(load):
    """There are twelve problems. A step with three rounds draws eleven."""
    config = load(
        *(
            "batch.prompts_per_step=4",
            "batch.completions_per_prompt=3",
            "batch.dynamic_sampling_rounds=2",
            f"run.seed={RUN_SEED}",
        )
    )
    sampler = Sampler(1, "SSSS" + 4 * "....S.....S")
    rollouts = GroupScheduler(config, sampler=sampler, monitor=Monitor(), prompts=prompts_of(12))
    rollouts.next(STEP)
    drawn = []
    for _ in range(4):
        ids = [group.prompt.problem.id for group in rollouts.next(STEP).sampled]
        assert len(set(ids)) == 11
        drawn += ids
    order = rollouts.state_dict()["order"]
    assert 12 * order["epoch"] + order["position"] == 4 + len(drawn) + len(order["put_off"])
