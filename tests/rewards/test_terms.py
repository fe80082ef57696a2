import numpy as np
import pytest

from megatron_rapo.config import LengthConfig, RewardConfig
from megatron_rapo.rewards import Rewards, reward_of
from megatron_rapo.rewards.terms import by_name, length_term
from megatron_rapo.types import Completion, Outcome, Problem, Verdict

PROBLEM = Problem(id="a", text="2+2=", answer="4")
RIGHT = Verdict(outcome=Outcome.CORRECT, formatted=True)


def completion(tokens):
    return Completion(
        token_ids=np.arange(tokens, dtype=np.int32), logprobs=np.zeros(tokens, np.float32), text="4", truncated=False
    )


@pytest.mark.parametrize(
    ("outcome", "formatted", "correctness", "format"),
    [
        (Outcome.CORRECT, True, 2.0, 0.0),
        (Outcome.WRONG, True, 0.1, 0.0),
        (Outcome.UNEVALUATED, True, 0.1, 0.0),
        (Outcome.UNPARSABLE, True, 0.1, 0.0),
        (Outcome.TIMEOUT, True, 0.1, 0.0),
        (Outcome.TIMEOUT, False, 0.0, -0.3),
        (Outcome.NO_ANSWER, False, 0.0, -0.3),
    ],
)
def test_a_verdict_earns_exactly_what_is_set(outcome, formatted, correctness, format):
    rewards = Rewards(RewardConfig(correct=2.0, wrong=0.1, unformatted=-0.3))
    terms = rewards.terms(PROBLEM, completion(9), Verdict(outcome=outcome, formatted=formatted))
    assert terms == {"correctness": correctness, "format": format}
    assert reward_of(terms) == correctness or reward_of(terms) == format


def test_what_is_not_worked_out_earns_as_set():
    rewards = Rewards(RewardConfig(correct=2.0, wrong=0.1, unevaluated="correct"))
    earned = [
        rewards.terms(PROBLEM, completion(9), Verdict(outcome=outcome, formatted=True))["correctness"]
        for outcome in (Outcome.UNEVALUATED, Outcome.CORRECT, Outcome.WRONG)
    ]
    assert earned == [2.0, 2.0, 0.1]


@pytest.mark.parametrize(
    ("num_tokens", "term"), [(0, 0.0), (100, 0.0), (150, -0.125), (300, -0.5), (301, -0.5), (10**6, -0.5)]
)
def test_length_by_hand(num_tokens, term):
    assert length_term(num_tokens, LengthConfig(free_tokens=100, full_tokens=300, penalty=0.5)) == term


def settings(**fields):
    return RewardConfig.model_validate({"wrong": -0.1, "unformatted": -0.3, **fields})


FUNCTIONS = [
    {"name": "low", "function": f"{__name__}:low", "range": [-0.7, 0.1], "weight": 0.1},
    {"name": "high", "function": f"{__name__}:high", "range": [0.1, 0.7]},
]


def low(problem, completion, verdict):
    return -0.7 if verdict.outcome is Outcome.NO_ANSWER else 0.1


def high(problem, completion, verdict):
    return 0.1 if verdict.outcome is Outcome.NO_ANSWER else 0.7


def test_terms_add_up_within_the_declared_range():
    """This holds to the last bit, although a plain sum of thirds and tenths is not exact."""
    config = settings(length={"free_tokens": 1, "full_tokens": 4, "penalty": 0.2}, functions=FUNCTIONS)
    assert config.range == pytest.approx((-0.3 - 0.2 - 0.07 + 0.1, 1.0 + 0.01 + 0.7))
    assert config.middle == pytest.approx((-0.47 + 1.71) / 2)
    rewards = Rewards.load(config)
    worst = rewards.terms(PROBLEM, completion(4), Verdict(outcome=Outcome.NO_ANSWER, formatted=False))
    best = rewards.terms(PROBLEM, completion(1), RIGHT)
    assert worst == {"correctness": 0.0, "format": -0.3, "length": -0.2, "low": 0.1 * -0.7, "high": 0.1}
    assert best == {"correctness": 1.0, "format": 0.0, "length": 0.0, "low": 0.1 * 0.1, "high": 0.7}
    assert (reward_of(worst), reward_of(best)) == config.range
    assert by_name([worst, best])["length"] == (-0.2, 0.0)
