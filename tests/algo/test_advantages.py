import pytest
import torch

from megatron_rapo.algo import group_advantages


def test_by_hand():
    """(1, 0, 0, 0): mean 1/4, sample variance (9/16 + 3 * 1/16) / 3 = 1/4, so (3/4, -1/4, -1/4, -1/4) / (1/2).
    (2, 4): mean 3, sample variance (1 + 1) / 1 = 2, so -+1 / sqrt(2)."""
    first = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), eps=0.0)
    second = group_advantages(torch.tensor([[2.0, 4.0]], dtype=torch.float64), eps=0.0)
    torch.testing.assert_close(first, torch.tensor([[1.5, -0.5, -0.5, -0.5]], dtype=torch.float64))
    torch.testing.assert_close(second, torch.tensor([[-(2**-0.5), 2**-0.5]], dtype=torch.float64))


def test_eps_is_added_to_the_deviation():
    """Deviation 1/2 + 1/4, so (3/4, -1/4, -1/4, -1/4) / (3/4)."""
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), eps=0.25)
    torch.testing.assert_close(found, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]))


def test_the_default_eps_is_too_small_to_matter():
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(found[0, 0].item(), 0.75 / 0.500001, rtol=1e-12, atol=0)


def test_groups_do_not_see_each_other():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [-1.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(group_advantages(rewards_PG), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3, 1e8, 1 / 3])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_are_exactly_zero(reward, size):
    """The mean of equal float32 numbers may be one rounding off, which division by eps = 1e-12 would make huge."""
    found = group_advantages(torch.full((2, size), reward), eps=1e-12)
    assert torch.equal(found, torch.zeros(2, size))


def test_shift_and_scale_do_not_matter():
    rewards_PG = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = group_advantages(rewards_PG, eps=0.0)
    torch.testing.assert_close(group_advantages(3 * rewards_PG - 7, eps=0.0), expected)
    torch.testing.assert_close(group_advantages(-rewards_PG, eps=0.0), -expected)
