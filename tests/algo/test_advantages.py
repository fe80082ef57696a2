import pytest
import torch

from megatron_rapo.algo import ADVANTAGES, group_advantages

REWARDS = [[1.0, 0.0, 0.0, 0.0], [2.0, 4.0, 4.0, 2.0], [5.0, 5.0, 5.0, 5.0]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Means 1/4 and 3; sample variances (9/16 + 3 * 1/16) / 3 = 1/4 and (4 * 1) / 3; the offset is 1e-6.
        (
            "mean_std",
            [
                [0.75 / 0.500001, -0.25 / 0.500001, -0.25 / 0.500001, -0.25 / 0.500001],
                [x / ((4 / 3) ** 0.5 + 1e-6) for x in (-1, 1, 1, -1)],
                [0.0] * 4,
            ],
        ),
        ("mean", [[0.75, -0.25, -0.25, -0.25], [-1.0, 1.0, 1.0, -1.0], [0.0] * 4]),
        # The others' means: 0, 1/3, 1/3, 1/3 and 10/3, 8/3, 8/3, 10/3.
        ("leave_one_out", [[1.0, -1 / 3, -1 / 3, -1 / 3], [-4 / 3, 4 / 3, 4 / 3, -4 / 3], [0.0] * 4]),
    ],
)
def test_by_hand(kind, expected):
    found = group_advantages(torch.tensor(REWARDS, dtype=torch.float64), kind)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others():
    rewards = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    expected = [[r - (sum(group) - r) / 4 for r in group] for group in rewards]
    found = group_advantages(torch.tensor(rewards, dtype=torch.float64), "leave_one_out")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3, 1e8, 1 / 3])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_are_exactly_zero(reward, size, kind):
    """The mean of equal float32 numbers may be one rounding off (of seven times 0.1 it is)."""
    found = group_advantages(torch.full((2, size), reward), kind)
    assert torch.equal(found, torch.zeros(2, size))


@pytest.mark.parametrize(("kind", "scale"), [("mean_std", 1.0), ("mean", 3.0), ("leave_one_out", 3.0)])
def test_a_shift_does_not_matter_and_a_scale_only_without_std(kind, scale):
    rewards_PG = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    plain = group_advantages(rewards_PG, kind)
    found = group_advantages(3 * rewards_PG - 7, kind)
    torch.testing.assert_close(found, scale * plain, rtol=3e-6, atol=0)  # the offset of the deviation
