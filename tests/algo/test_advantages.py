import pytest
import torch

from megatron_rapo.algo import ADVANTAGES, group_advantages, have_signal

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
    """The mean of equal numbers can have a rounding error (for example of seven times 0.1)."""
    for dtype in (torch.float32, torch.float64):
        found = group_advantages(torch.full((2, size), reward, dtype=dtype), kind)
        assert torch.equal(found, torch.zeros(2, size, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "scale"), [("mean_std", 1.0), ("mean", 3.0), ("leave_one_out", 3.0)])
def test_a_shift_does_not_matter_and_a_scale_only_without_std(kind, scale):
    rewards_PG = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    plain = group_advantages(rewards_PG, kind)
    found = group_advantages(3 * rewards_PG - 7, kind)
    torch.testing.assert_close(found, scale * plain, rtol=3e-6, atol=0)  # the offset of the deviation


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize(
    ("rewards", "signal"),
    [
        ([0.35] * 7 + [0.35000001], False),
        ([100.0] * 7 + [100.00001], False),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], False),  # 0.30000000000000004
        ([0.0, 5e-17, 0.0, 0.0], False),  # what is left of 0.1 + 0.2 - 0.3
        ([1e8, 1e8 + 8, 1e8, 1e8], False),  # an ulp of float32
        ([1.0, 1.0, 1.0, 0.999], True),  # a length penalty
        ([0.0, 0.0, 1e-4, 0.0], True),
        ([1000.0, 1000.0, 1000.0, 1001.0], True),
        ([-0.5, -0.5, -0.5, -0.50001], True),
    ],
)
def test_differences_by_rounding_are_no_signal(rewards, signal, kind):
    rewards_PG = torch.tensor([rewards], dtype=torch.float64)
    found = group_advantages(rewards_PG, kind)
    assert have_signal(rewards_PG).tolist() == [signal]
    assert (found != 0).any().item() == signal
    assert signal or torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("shift", [0.0, 0.35, 1e6])
def test_the_sum_is_zero_to_rounding(shift, kind):
    rewards_PG = torch.rand(64, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100 + shift
    found = group_advantages(rewards_PG.float(), kind)  # whose sums over a group in float32 would be off by 1e-6
    assert found.sum(dim=-1).abs().max() < 1e-14 * found.abs().max()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [2 / 3, 0.0, -1 / 3, -1 / 3]),
        ("leave_one_out", [1.0, 0.0, -0.5, -0.5]),
        (
            "mean_std",
            [r / ((1 / 3) ** 0.5 + 1e-6) for r in (2 / 3, 0.0, -1 / 3, -1 / 3)],
        ),  # variance (4 + 1 + 1) / 9 / 2
    ],
)
def test_the_masked_are_not_of_the_group(kind, expected):
    rewards_PG = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    trained_PG = torch.tensor([[True, False, True, True]])
    found = group_advantages(rewards_PG, kind, trained_PG)
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_masked_may_stay_in_the_baseline():
    rewards_PG = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    trained_PG, everyone_PG = torch.tensor([[True, False, True, True]]), torch.ones(1, 4, dtype=torch.bool)
    found = group_advantages(rewards_PG, "mean", trained_PG, everyone_PG)
    assert found.tolist() == [[0.5, 0.0, -0.5, -0.5]]


@pytest.mark.parametrize(
    ("trained", "keeps_baseline", "signal"),
    [
        ([True, True, True, True], False, True),
        ([True, False, True, True], False, True),
        ([True, True, False, False], False, False),  # equal, once the others are gone
        ([True, True, False, False], True, True),
        ([True, False, False, False], False, False),  # no one to compare with
        ([False, False, False, False], False, False),
        ([False, False, False, False], True, False),  # no one to train on
    ],
)
def test_signal_among_the_trained(trained, keeps_baseline, signal):
    rewards_PG, trained_PG = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([trained])
    masks = trained_PG, torch.ones_like(trained_PG) if keeps_baseline else None
    assert have_signal(rewards_PG, *masks).tolist() == [signal]
    for kind in ADVANTAGES:
        found = group_advantages(rewards_PG, kind, *masks)
        assert (found != 0).any().item() == signal and found[~trained_PG].eq(0).all() and found.isfinite().all()


def test_signal_is_of_each_group():
    """In one group the trained completion's reward is the mean, so it has no advantage."""
    rewards_PG = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 1.0], [0.0, 0.0, 1.0]])
    trained_PG = torch.tensor([[True, False, False]]).expand(3, 3)
    assert have_signal(rewards_PG, trained_PG, torch.ones_like(trained_PG)).tolist() == [False, False, True]
