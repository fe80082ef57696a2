import math

import pytest
import torch

from megatron_rapo.algo import PHI_SHAPES, phi_of


def phi(rewards, shape="linear", *, reward_range=(0.0, 1.0), phi_min=0.5, phi_max=1.0, exponent=2.0, sharpness=10.0):
    return phi_of(
        torch.as_tensor(rewards),
        shape=shape,
        reward_range=reward_range,
        phi_min=phi_min,
        phi_max=phi_max,
        exponent=exponent,
        sharpness=sharpness,
    )


def sigmoid_share(share, sharpness):
    """Return (s(x) - s(0)) / (s(1) - s(0)), where s is the logistic function around the middle."""
    at, low, high = (1 / (1 + math.exp(-sharpness * (x - 0.5))) for x in (share, 0.0, 1.0))
    return (at - low) / (high - low)


@pytest.mark.parametrize(
    ("shape", "settings", "shares"),
    [
        # of rewards -1, -0.25, 0.5, 2, which are 0, 1/4, 1/2 and all of the way from -1 to 2
        ("linear", {}, [0.0, 0.25, 0.5, 1.0]),
        ("power", {"exponent": 2.0}, [0.0, 0.0625, 0.25, 1.0]),
        ("power", {"exponent": 0.5}, [0.0, 0.5, 0.5**0.5, 1.0]),
        ("sigmoid", {"sharpness": 10.0}, [0.0, sigmoid_share(0.25, 10.0), 0.5, 1.0]),
        ("sigmoid", {"sharpness": 4.0}, [0.0, sigmoid_share(0.25, 4.0), 0.5, 1.0]),
        ("sigmoid", {"sharpness": 1e4}, [0.0, 0.0, 0.5, 1.0]),  # a step
        ("sigmoid", {"sharpness": 1e-9}, [0.0, 0.25, 0.5, 1.0]),  # as good as linear
        ("constant", {}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(shape, settings, shares, dtype):
    rewards = torch.tensor([[-1.0, -0.25], [0.5, 2.0]], dtype=dtype)
    found = phi(rewards, shape, reward_range=(-1.0, 2.0), phi_min=0.2, phi_max=0.8, **settings)
    expected = torch.tensor([0.2 + 0.6 * share for share in shares], dtype=dtype).reshape(2, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", PHI_SHAPES)
def test_it_never_falls_and_stays_between_its_ends(shape):
    found = phi(torch.linspace(0, 1, 101, dtype=torch.float64), shape, phi_min=0.25)
    assert (found.diff() >= 0).all() and found.min() >= 0.25 and found.max() <= 1.0
    if shape != "constant":
        assert (found.diff() > 0).all() and found[0] == 0.25 and found[-1] == 1.0


@pytest.mark.parametrize("shape", PHI_SHAPES)
def test_one_everywhere_turns_the_reweighting_off(shape):
    assert torch.equal(phi([0.0, 0.3, 1.0], shape, phi_min=1.0), torch.ones(3))


@pytest.mark.parametrize("shape", ["linear", "power", "sigmoid"])
@pytest.mark.parametrize("ends", [(0.1, 0.7), (-0.3, 1.1), (0.0, 1 / 3)])
def test_the_ends_of_the_range_are_inside_it_after_rounding_to_float32(ends, shape):
    found = phi(torch.tensor(ends, dtype=torch.float32), shape, reward_range=ends, exponent=0.5)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("shape", ["linear", "power", "sigmoid"])
def test_rounding_does_not_lift_phi_above_its_maximum(shape):
    """In float32, (0.2 + 2.9) / 3.1 is 1.0000001."""
    assert phi(torch.tensor([0.2]), shape, reward_range=(-2.9, 0.2), phi_min=0.0).item() <= 1.0


@pytest.mark.parametrize("shape", PHI_SHAPES)
@pytest.mark.parametrize(
    ("rewards", "said"), [([0.0, 1.5], "0.0 to 1.5"), ([-0.25, 1.0], "-0.25 to 1.0"), ([2.0], "2.0 to 2.0")]
)
def test_a_reward_outside_its_range_is_refused(rewards, said, shape):
    with pytest.raises(ValueError) as raised:
        phi(rewards, shape)
    assert str(raised.value) == (
        f"rewards {said}: outside their declared range [0.0, 1.0]; declare the range that the reward really has."
    )


def test_no_rewards():
    assert phi(torch.zeros(0, 4)).shape == (0, 4)
