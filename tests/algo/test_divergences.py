"""Expected gradients by exact enumeration: a categorical policy over V = 6 tokens, its logits the parameters, fp64."""

import math

import pytest
import torch

from megatron_rapo.algo import DIVERGENCES
from megatron_rapo.algo.divergences import forward_kl, none, rapo_paper, reverse_kl

NO_CAP = 1e9
SEEDS = range(4)
PHIS = [0.0, 0.4, 1.0]


def policy_and_reference(seed, phi):
    """Logits of pi (with grad), and log pihat_ref = log (pi_ref^phi / Z) with Z summed out."""
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    ref_V = torch.randn(6, dtype=torch.float64, generator=generator).softmax(0)
    ref_hat_V = ref_V**phi / (ref_V**phi).sum()
    return logits_V, ref_hat_V.log()


def forward(logp_V, ref_logp_V):
    return (ref_logp_V.exp() * (ref_logp_V - logp_V)).sum()


def reverse(logp_V, ref_logp_V):
    return (logp_V.exp() * (logp_V - ref_logp_V)).sum()


def half_squared_log_rho(logp_V, ref_logp_V):
    return 0.5 * (ref_logp_V.exp() * (ref_logp_V - logp_V) ** 2).sum()


# loss -> what its expected gradient is the gradient of, what its reported value is
NAMED = {
    "rapo_paper": (half_squared_log_rho, forward),
    "forward_kl": (forward, forward),
    "reverse_kl": (reverse, reverse),
}


def expected_gradient(loss, logits_V, ref_logp_V):
    """E_pi[grad loss], every token of the vocabulary taken as the sampled one with its probability."""
    logp_V = logits_V.log_softmax(0)
    penalty = loss(logp_V, ref_logp_V, NO_CAP)
    return torch.autograd.grad((logp_V.exp().detach() * penalty.loss_T).sum(), logits_V)[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("name", NAMED)
def test_expected_gradient(name, phi, seed):
    logits_V, ref_logp_V = policy_and_reference(seed, phi)
    found = expected_gradient(DIVERGENCES[name], logits_V, ref_logp_V)
    quantity, _ = NAMED[name]
    expected = torch.autograd.grad(quantity(logits_V.log_softmax(0), ref_logp_V), logits_V)[0]
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_three_gradients_are_different():
    logits_V, ref_logp_V = policy_and_reference(0, 0.4)
    paper, forwards, reverses = (expected_gradient(DIVERGENCES[name], logits_V, ref_logp_V) for name in NAMED)
    for a, b in ((paper, forwards), (forwards, reverses), (paper, reverses)):
        assert (a - b).abs().max() > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("name", NAMED)
def test_mean_of_the_reported_value(name, phi, seed):
    logits_V, ref_logp_V = policy_and_reference(seed, phi)
    logp_V = logits_V.log_softmax(0)
    value_V = DIVERGENCES[name](logp_V, ref_logp_V, NO_CAP).value_T
    assert not value_V.requires_grad
    assert (value_V >= 0).all()  # each token's, so that the mean has little variance
    _, reported = NAMED[name]
    torch.testing.assert_close((logp_V.exp() * value_V).sum(), reported(logp_V, ref_logp_V), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMED)
def test_nothing_to_do_where_the_policy_is_the_reference(name):
    logits_V, _ = policy_and_reference(0, 1.0)
    logp_V = logits_V.log_softmax(0)
    penalty = DIVERGENCES[name](logp_V, logp_V.detach(), NO_CAP)
    assert torch.equal(penalty.value_T, torch.zeros_like(logp_V))
    gradient = expected_gradient(DIVERGENCES[name], logits_V, logp_V.detach())
    torch.testing.assert_close(gradient, torch.zeros_like(logp_V), rtol=0, atol=1e-15)


LOG2 = math.log(2.0)


@pytest.mark.parametrize(
    ("loss", "expected_loss", "expected_value", "expected_gradient"),
    [
        # pi = 1/4, pihat = 1/2, so rho = 2; d rho / d log pi = -rho.
        (rapo_paper, 2 * LOG2 - 1, 2 * LOG2 - 1, -2 * LOG2),  # -rho log rho
        (forward_kl, 4 * LOG2, 2 * LOG2 - 1, -2.0),  # loss -2 log(1/4) = 4 log 2; gradient -rho
        (reverse_kl, 0.5 * LOG2**2, 1 - LOG2, -LOG2),  # value 2 - 1 - log 2; gradient -log rho
        (none, 0.0, 0.0, None),
    ],
)
def test_one_token_by_hand(loss, expected_loss, expected_value, expected_gradient):
    logp_T = torch.tensor([math.log(0.25)], dtype=torch.float64, requires_grad=True)
    penalty = loss(logp_T, torch.tensor([math.log(0.5)], dtype=torch.float64), 20.0)
    assert penalty.loss_T.item() == pytest.approx(expected_loss, abs=1e-14)
    assert penalty.value_T.item() == pytest.approx(expected_value, abs=1e-14)
    assert not penalty.capped_T.any()
    if expected_gradient is None:
        assert not penalty.loss_T.requires_grad
    else:
        assert torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0].item() == pytest.approx(expected_gradient)


E3 = math.exp(3.0)


@pytest.mark.parametrize(
    ("loss", "values", "gradients"),
    [
        # log rho = 5, 3, -5 with a cap of 3: rho is taken as e^3, e^3, e^-3.
        (rapo_paper, [2 * E3 + 1, 2 * E3 + 1, -4 / E3 + 1], [-3 * E3, -3 * E3, 3 / E3]),
        (forward_kl, [2 * E3 + 1, 2 * E3 + 1, -4 / E3 + 1], [-E3, -E3, -1 / E3]),
        (reverse_kl, [E3 - 4, E3 - 4, 1 / E3 + 2], [-3.0, -3.0, 3.0]),
    ],
)
def test_cap(loss, values, gradients):
    """Beyond the cap tokens are counted, their value is that at the cap, and so is their gradient: it is not lost."""
    logp_T = torch.tensor([-7.0, -5.0, -1.0], dtype=torch.float64, requires_grad=True)
    ref_logp_T = torch.tensor([-2.0, -2.0, -6.0], dtype=torch.float64)
    penalty = loss(logp_T, ref_logp_T, 3.0)
    assert penalty.capped_T.tolist() == [True, False, True]
    torch.testing.assert_close(penalty.value_T, torch.tensor(values, dtype=torch.float64))
    found = torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0]
    torch.testing.assert_close(found, torch.tensor(gradients, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("log_rho", [1000.0, -1000.0])
def test_cap_keeps_float32_finite(name, log_rho):
    logp_T = torch.tensor([min(0.0, -log_rho)], requires_grad=True)
    penalty = DIVERGENCES[name](logp_T, logp_T.detach() + log_rho, 20.0)
    gradient = torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0]
    assert penalty.capped_T.all()
    assert penalty.loss_T.isfinite().all() and penalty.value_T.isfinite().all() and gradient.isfinite().all()
    assert gradient.abs() > 0


def test_no_other_names():
    assert set(DIVERGENCES) == {*NAMED, "none"}
