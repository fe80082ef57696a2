import pytest

from megatron_rapo.config import RewardConfig
from megatron_rapo.rewards import reward_of
from megatron_rapo.types import Outcome, Verdict


@pytest.mark.parametrize(
    ("outcome", "formatted", "reward"),
    [
        (Outcome.CORRECT, True, 2.0),
        (Outcome.WRONG, True, 0.5),
        (Outcome.UNPARSABLE, True, 0.5),
        (Outcome.TIMEOUT, True, 0.5),
        (Outcome.NO_ANSWER, False, -1.0),
    ],
)
def test_reward_of(outcome, formatted, reward):
    config = RewardConfig(correct=2.0, wrong=0.5, unformatted=-1.0)
    assert reward_of(Verdict(outcome=outcome, formatted=formatted), config) == reward
