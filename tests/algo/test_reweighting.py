import pytest
import torch

from megatron_rapo.algo import linear_phi


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (-1.0, 0.2),  # the lowest
        (1.0, 0.8),  # the highest
        (0.0, 0.5),  # half of the way: 0.2 + 0.6 * 1/2
        (-0.5, 0.35),  # a quarter of the way: 0.2 + 0.6 * 1/4
    ],
)
def test_linear_between_the_ends(reward, expected):
    phi = linear_phi(torch.tensor([reward]).double(), reward_range=(-1.0, 1.0), phi_min=0.2, phi_max=0.8)
    torch.testing.assert_close(phi, torch.tensor([expected]).double())


def test_the_shape_stays():
    rewards_PG = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    phi_PG = linear_phi(rewards_PG, reward_range=(0.0, 1.0), phi_min=0.9, phi_max=1.0)
    torch.testing.assert_close(phi_PG, torch.tensor([[0.9, 1.0], [1.0, 0.9], [0.9, 0.9]]))


def test_one_everywhere_turns_the_reweighting_off():
    phi = linear_phi(torch.tensor([0.0, 0.3, 1.0]), reward_range=(0.0, 1.0), phi_min=1.0, phi_max=1.0)
    assert torch.equal(phi, torch.ones(3))


@pytest.mark.parametrize("ends", [(0.1, 0.7), (-0.3, 1.1), (0.0, 1 / 3)])
def test_the_ends_of_the_range_are_inside_it_after_rounding_to_float32(ends):
    phi = linear_phi(torch.tensor(ends, dtype=torch.float32), reward_range=ends, phi_min=0.5, phi_max=1.0)
    torch.testing.assert_close(phi, torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(
    ("rewards", "said"), [([0.0, 1.5], "0.0 to 1.5"), ([-0.25, 1.0], "-0.25 to 1.0"), ([2.0], "2.0 to 2.0")]
)
def test_a_reward_outside_its_range_is_refused(rewards, said):
    with pytest.raises(ValueError) as raised:
        linear_phi(torch.tensor(rewards), reward_range=(0.0, 1.0), phi_min=0.5, phi_max=1.0)
    assert str(raised.value) == (
        f"rewards {said}: outside their declared range [0.0, 1.0]; declare the range that the reward really has."
    )


def test_no_rewards():
    assert linear_phi(torch.zeros(0, 4), reward_range=(0.0, 1.0), phi_min=0.5, phi_max=1.0).shape == (0, 4)
