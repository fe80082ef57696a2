"""Check values and gradients of every divergence, per token and in expectation (by enumeration), in fp64."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import kl_div

from megatron_rapo.algo import DIVERGENCES, QUANTITIES
from megatron_rapo.algo.divergences import (
    exact,
    forward_kl,
    forward_kl_k3,
    none,
    rapo_paper,
    reverse_kl,
    reverse_kl_k3,
)
from tests.algo.enumeration import NO_CAP, V, make_world

SEEDS = range(4)
PHIS = [0.0, 0.4, 1.0]
SAMPLED = [name for name, kind in DIVERGENCES.items() if kind.gradient and not kind.exact]
ALONE = {"alpha": 1.0, "beta": 0.0}  # of the loss's terms, in an expectation where no advantage is given


def of_divergence(world):
    """Return the same world with advantages of 0, so that the loss is only the penalty."""
    return replace(world, advantage_V=torch.zeros(V, dtype=torch.float64))


def quantity_and_gradient(world, name):
    """Return a quantity's value and its gradient by the policy's logits. Zeros without a quantity."""
    if name is None:
        return torch.zeros((), dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
    logits_V = world.logits_V.clone().requires_grad_()
    quantity = QUANTITIES[name](logits_V.log_softmax(0), world.ref_logp_V)
    return quantity.detach(), torch.autograd.grad(quantity, logits_V)[0]


def by_logp(world, name):
    """Return the penalty of each token, and its gradient by that token's log-probability."""
    logp_V = world.logits_V.log_softmax(0).requires_grad_()
    penalty = DIVERGENCES[name].estimate(logp_V, world.ref_logp_V, NO_CAP)
    return penalty, torch.autograd.grad(penalty.loss_T.sum(), logp_V)[0]


def test_the_quantities_are_what_their_names_say():
    """The KLs are torch's. 1/2 E_p^[(log rho)^2] is by hand: p^ = (1/2, 1/2), pi = (1/4, 3/4), rho = (2, 2/3)."""
    world = make_world(0, 0.4)
    pi, ref = Categorical(logits=world.logits_V), Categorical(logits=0.4 * world.ref_logits_V)
    logp_V, ref_logp_V = world.logits_V.log_softmax(0), world.ref_logp_V
    forward, reverse = kl_divergence(ref, pi), kl_divergence(pi, ref)
    torch.testing.assert_close(kl_div(logp_V, ref_logp_V, log_target=True, reduction="sum"), forward)
    torch.testing.assert_close(QUANTITIES["forward_kl"](logp_V, ref_logp_V), forward)
    torch.testing.assert_close(QUANTITIES["reverse_kl"](logp_V, ref_logp_V), reverse)
    half = QUANTITIES["half_squared_log_rho"](torch.tensor([0.25, 0.75]).log(), torch.tensor([0.5, 0.5]).log())
    assert half.item() == pytest.approx(0.25 * (math.log(2) ** 2 + math.log(1.5) ** 2))


def test_the_quantities_have_different_gradients():
    """Otherwise the tests below could not find a wrong name."""
    gradients = [quantity_and_gradient(make_world(0, 0.4), name)[1] for name in QUANTITIES]
    assert min((a - b).abs().max() for i, a in enumerate(gradients) for b in gradients[:i]) > 0.05


# --- in expectation ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_on_policy(name, phi, seed):
    world = of_divergence(make_world(seed, phi))
    kind = DIVERGENCES[name]
    value, _ = quantity_and_gradient(world, kind.value)
    _, gradient = quantity_and_gradient(world, kind.gradient)
    assert kind.gradient is None or (gradient.abs().max() > 1e-2 and value > 1e-2)
    torch.testing.assert_close(world.expected_gradient(name, **ALONE), gradient, rtol=0, atol=1e-10)
    reported = world.expected_loss(world.logits_V, name, **ALONE).metrics["divergence"]
    torch.testing.assert_close(reported, value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_off_policy(name, seed):
    """Tokens come from the engine's distribution. Corrected and exact divergences are as on-policy.

    The usual k3 has a gradient that is wrong by at least a half, and a value that is wrong by at least a fifth.
    """
    world = of_divergence(make_world(seed, 0.4, old_noise=1.0, engine_noise=1.0))
    kind = DIVERGENCES[name]
    value, _ = quantity_and_gradient(world, kind.value)
    _, gradient = quantity_and_gradient(world, kind.gradient)
    found = world.expected_gradient(name, **ALONE)
    reported = world.expected_loss(world.logits_V, name, **ALONE).metrics["divergence"]
    if name == "forward_kl_k3":
        assert (found - gradient).norm() > 0.5 * gradient.norm() and abs(reported - value) > 0.2 * value
    else:
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-10)
        torch.testing.assert_close(reported, value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name in DIVERGENCES if DIVERGENCES[name].corrected])
def test_truncated_importance_weights_are_a_bias_that_is_counted(name, seed):
    """The gradient is sum_v mu(v) min(pi(v) / mu(v), 1.1) grad(v). Each v with pi(v) > 1.1 mu(v) is counted."""
    world = of_divergence(make_world(seed, 0.4, old_noise=1.0, engine_noise=1.0))
    world = replace(world, old_logp_V=world.engine_logp_V)  # no count from the surrogate's weights
    pi_V, mu_V = world.logits_V.softmax(0), world.engine_logp_V.exp()
    _, by_logp_V = by_logp(world, name)
    kept_V = torch.minimum(pi_V, 1.1 * mu_V) * by_logp_V
    expected = kept_V - pi_V * kept_V.sum()  # d log pi(v) / d logits = onehot(v) - pi
    found = world.expected_gradient(name, **ALONE, importance_cap=1.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    _, unbiased = quantity_and_gradient(world, DIVERGENCES[name].gradient)
    assert (found - unbiased).norm() > 0.02 * unbiased.norm()
    counted = world.expected_loss(world.logits_V, name, **ALONE, importance_cap=1.1).metrics["importance_capped"]
    assert 0 < counted == (pi_V > 1.1 * mu_V).sum() < V


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if not DIVERGENCES[name].corrected])
def test_what_has_no_importance_weights_does_not_see_their_truncation(name):
    world = of_divergence(make_world(0, 0.4, engine_noise=1.0))
    world = replace(world, old_logp_V=world.engine_logp_V)
    free, capped = (world.expected_loss(world.logits_V, name, **ALONE, importance_cap=cap) for cap in (NO_CAP, 1.0))
    assert free.metrics["importance_capped"] == capped.metrics["importance_capped"] == 0
    gradients = [world.expected_gradient(name, **ALONE, importance_cap=cap) for cap in (NO_CAP, 1.0)]
    assert torch.equal(*gradients) and free.metrics["divergence"] == capped.metrics["divergence"]


def test_phi_of_one_is_the_plain_forward_kl():
    world = of_divergence(make_world(0, 1.0))
    logits_V = world.logits_V.clone().requires_grad_()
    plain = kl_divergence(Categorical(logits=world.ref_logits_V), Categorical(logits=logits_V))
    gradient = torch.autograd.grad(plain, logits_V)[0]
    for name in ("forward_kl", "forward_kl_exact", "forward_kl_k3"):
        torch.testing.assert_close(world.expected_gradient(name, **ALONE), gradient, rtol=0, atol=1e-10)


# --- token by token ---


@pytest.mark.parametrize("seed", SEEDS)
def test_identities_of_every_token(seed):
    """forward_kl has the gradient of k3, and of the paper's with its score-function term. k3 with its own has k2's."""
    world = make_world(seed, 0.4)
    _, forward_V = by_logp(world, "forward_kl")
    _, k3_V = by_logp(world, "forward_kl_k3")
    paper, paper_V = by_logp(world, "rapo_paper")
    torch.testing.assert_close(k3_V, forward_V, rtol=0, atol=1e-14)
    torch.testing.assert_close(paper_V + paper.loss_T.detach(), forward_V, rtol=0, atol=1e-14)
    _, k2_V = by_logp(world, "reverse_kl")
    _, corrected_k3_V = by_logp(world, "reverse_kl_k3")
    torch.testing.assert_close(corrected_k3_V, k2_V, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", SAMPLED)
def test_every_token_reports_at_least_zero(name):
    """So the mean has little variance, and a negative divergence is never shown."""
    penalty, _ = by_logp(make_world(0, 0.4), name)
    assert (penalty.value_T > 0).all() and not penalty.value_T.requires_grad


@pytest.mark.parametrize("name", SAMPLED)
def test_at_the_reference_no_token_has_a_gradient(name):
    """Not only the mean is 0: the estimate has no noise there."""
    world = make_world(0, 1.0)
    world = replace(world, ref_logp_V=world.logits_V.log_softmax(0))
    penalty, gradient_V = by_logp(world, name)
    assert torch.equal(penalty.value_T, torch.zeros(V, dtype=torch.float64))
    assert torch.equal(gradient_V, torch.zeros(V, dtype=torch.float64))


LOG2 = math.log(2.0)


@pytest.mark.parametrize(
    ("estimate", "expected_loss", "expected_value", "expected_gradient"),
    [
        # pi = 1/4, pihat = 1/2, so rho = 2; d rho / d log pi = -rho.
        (rapo_paper, 2 * LOG2 - 1, 2 * LOG2 - 1, -2 * LOG2),  # -rho log rho
        (forward_kl, 2 * LOG2, 2 * LOG2 - 1, -1.0),  # loss (2 - 1) * -log(1/4); gradient 1 - rho
        (forward_kl_k3, 1 - LOG2, 1 - LOG2, -1.0),  # 2 - 1 - log 2
        (reverse_kl, 0.5 * LOG2**2, 1 - LOG2, -LOG2),  # reported by k3; gradient -log rho
        (reverse_kl_k3, 1 - LOG2, 1 - LOG2, -LOG2),
        (none, 0.0, 0.0, None),
    ],
)
def test_one_token_by_hand(estimate, expected_loss, expected_value, expected_gradient):
    logp_T = torch.tensor([math.log(0.25)], dtype=torch.float64, requires_grad=True)
    penalty = estimate(logp_T, torch.tensor([math.log(0.5)], dtype=torch.float64), 20.0)
    assert penalty.loss_T.item() == pytest.approx(expected_loss, abs=1e-14)
    assert penalty.value_T.item() == pytest.approx(expected_value, abs=1e-14)
    assert not penalty.capped_T.any()
    if expected_gradient is None:
        assert not penalty.loss_T.requires_grad
    else:
        assert torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0].item() == pytest.approx(expected_gradient)


def test_exact_ones_are_taken_as_they_come():
    kl_T = torch.tensor([0.5, 100.0], requires_grad=True)
    penalty = exact(kl_T)
    assert penalty.loss_T is kl_T and not penalty.value_T.requires_grad
    assert penalty.value_T.tolist() == [0.5, 100.0] and penalty.capped_T.tolist() == [False, False]


E3 = math.exp(3.0)


@pytest.mark.parametrize(
    ("estimate", "values", "gradients"),
    [
        # log rho = 5, 3, -5 with a cap of 3: rho is taken as e^3, e^3, e^-3.
        (rapo_paper, [2 * E3 + 1, 2 * E3 + 1, -4 / E3 + 1], [-3 * E3, -3 * E3, 3 / E3]),
        (forward_kl, [2 * E3 + 1, 2 * E3 + 1, -4 / E3 + 1], [1 - E3, 1 - E3, 1 - 1 / E3]),
        (forward_kl_k3, [E3 - 4, E3 - 4, 1 / E3 + 2], [1 - E3, 1 - E3, 1 - 1 / E3]),
        (reverse_kl, [E3 - 4, E3 - 4, 1 / E3 + 2], [-3.0, -3.0, 3.0]),
        (reverse_kl_k3, [E3 - 4, E3 - 4, 1 / E3 + 2], [-3.0, -3.0, 3.0]),
    ],
)
def test_cap(estimate, values, gradients):
    """Tokens beyond the cap are counted. They have the value and the gradient at the cap, not a gradient of 0."""
    logp_T = torch.tensor([-7.0, -5.0, -1.0], dtype=torch.float64, requires_grad=True)
    ref_logp_T = torch.tensor([-2.0, -2.0, -6.0], dtype=torch.float64)
    penalty = estimate(logp_T, ref_logp_T, 3.0)
    assert penalty.capped_T.tolist() == [True, False, True]
    torch.testing.assert_close(penalty.value_T, torch.tensor(values, dtype=torch.float64))
    found = torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0]
    torch.testing.assert_close(found, torch.tensor(gradients, dtype=torch.float64))


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("log_rho", [1000.0, -1000.0])
def test_cap_keeps_float32_finite(name, log_rho):
    logp_T = torch.tensor([min(0.0, -log_rho)], requires_grad=True)
    penalty = DIVERGENCES[name].estimate(logp_T, logp_T.detach() + log_rho, 20.0)
    gradient = torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0]
    assert penalty.capped_T.all()
    assert penalty.loss_T.isfinite().all() and penalty.value_T.isfinite().all() and gradient.isfinite().all()
    assert gradient.abs() > 0


def test_k3_keeps_the_gradient_that_a_clamp_to_10_takes():
    """Compare with a clamped k3 (docs/data.md): the same gradient between log rho = -10.99 and 2.61, and 0 beyond."""
    log_rho_T = torch.tensor([-12.0, -10.99, -1.0, 0.5, 2.61, 2.62, 9.0], dtype=torch.float64)
    logp_T = torch.zeros_like(log_rho_T, requires_grad=True)
    ours_T = forward_kl_k3(logp_T, log_rho_T, 20.0).loss_T
    [ours_gradient_T] = torch.autograd.grad(ours_T.sum(), logp_T)
    log_ratio_T = log_rho_T - logp_T
    clamped_T = (log_ratio_T.exp() - log_ratio_T - 1).clamp(-10, 10)
    [clamped_gradient_T] = torch.autograd.grad(clamped_T.sum(), logp_T)
    torch.testing.assert_close(ours_gradient_T, 1 - log_rho_T.exp())
    inside_T = torch.tensor([False, True, True, True, True, False, False])
    torch.testing.assert_close(clamped_gradient_T, torch.where(inside_T, ours_gradient_T, 0.0))
