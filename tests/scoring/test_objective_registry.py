"""Look up entries of [algorithm] by name, module and file. Check users' own in the loss, and their refusals."""

import uuid

import pytest
import torch

from megatron_rapo import builtin_names
from megatron_rapo.algo import ADVANTAGES, DIVERGENCES, PHI_SHAPES
from megatron_rapo.audit.measure import audit
from megatron_rapo.config import AlgorithmConfig, RewardConfig
from megatron_rapo.runtime.user_code import UserCodeError
from megatron_rapo.scoring.objective import loss_function, to_sequences
from megatron_rapo.scoring.objective_registry import advantage_of, check_algorithm, divergence_of, phi_shape_of
from tests.scoring.test_objective import GROUPS, RANGE, SETTINGS, scored_batch
from tests.settings import refusal


@pytest.fixture
def write(tmp_path):
    """Return write(source), which writes a new file under a name that no other module has."""

    def written(source):
        path = tmp_path / f"mine_{uuid.uuid4().hex}.py"
        path.write_text(source)
        return path

    return written


def refused(**settings):
    with pytest.raises(UserCodeError) as raised:
        check_algorithm(AlgorithmConfig(**settings))
    return str(raised.value)


# --- divergences ---

K2 = """
from megatron_rapo.algo import Divergence, Penalty
from megatron_rapo.algo.divergences import clamp_keep_grad

def k2(logp_T, ref_logp_T, log_rho_cap):
    log_rho_T, capped_T = clamp_keep_grad(ref_logp_T - logp_T, log_rho_cap)
    detached_T = log_rho_T.detach()
    return Penalty(0.5 * log_rho_T**2, detached_T.exp() - 1 - detached_T, capped_T)

claimed = Divergence(gradient="reverse_kl", value="reverse_kl", estimate=k2, corrected=True)
wrong = Divergence(gradient="forward_kl", value="reverse_kl", estimate=k2, corrected=True)
"""


@pytest.mark.parametrize("name", builtin_names.DIVERGENCES)
def test_a_built_in_divergence(name):
    assert divergence_of(name) is DIVERGENCES[name]
    assert divergence_of(name).reference == (name != "none")


@pytest.mark.parametrize("name", ["k2", "claimed"])
@pytest.mark.parametrize("by", ["file", "module"])
def test_a_divergence_of_ones_own_is_the_one_in_the_loss(load, write, monkeypatch, name, by):
    """It is a copy of the built-in k2, so loss, gradient and metrics are the same to the bit."""
    path = write(K2)
    monkeypatch.syspath_prepend(path.parent)
    own = f"{path if by == 'file' else path.stem}:{name}"
    scores, batch = scored_batch(load)
    losses = [
        loss_function(load(f"algorithm.divergence={each}", *SETTINGS), None)(scores, batch)
        for each in (own, "reverse_kl", "forward_kl")
    ]
    gradients = [torch.autograd.grad(each.loss, scores.logp_T)[0] for each in losses]
    assert losses[0].loss.item() == losses[1].loss.item() != losses[2].loss.item()
    assert torch.equal(gradients[0], gradients[1]) and losses[0].metrics == losses[1].metrics


def test_the_audit_holds_a_divergence_to_its_claim(write):
    path = write(K2)
    measured = {
        name: audit(AlgorithmConfig(divergence=f"{path}:{name}"), RewardConfig()) for name in ("claimed", "wrong")
    }
    assert measured["claimed"].agrees and not measured["wrong"].agrees
    assert measured["wrong"].nearest == "reverse_kl"
    with pytest.raises(UserCodeError) as raised:
        audit(AlgorithmConfig(divergence=f"{path}:k2"), RewardConfig())
    assert str(raised.value) == (
        f"algorithm.divergence='{path}:k2': claims no gradient, so there is nothing to compare with; name a "
        "Divergence(gradient=..., value=..., estimate=...)."
    )


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("0.5", "returned float; return a megatron_rapo.algo.Penalty."),
        ("Penalty(logp_T, 0.0, logp_T > 0)", "value_T is float; return a tensor."),
        (
            "Penalty(logp_T.sum(), logp_T.detach(), logp_T > 0)",
            "loss_T has shape [] and torch.float32, from inputs of shape [3]; return the same shape, torch.float32.",
        ),
        (
            "Penalty(logp_T, logp_T.detach(), logp_T.detach())",
            "capped_T has shape [3] and torch.float32, from inputs of shape [3]; return the same shape, torch.bool.",
        ),
        (
            "Penalty(logp_T, logp_T.detach() / 0, logp_T > 0)",
            "value_T is not finite ([-inf, -inf, -inf]); return finite numbers.",
        ),
        (
            "Penalty(logp_T, logp_T, logp_T > 0)",
            "value_T has a gradient, and it is only reported; detach it.",
        ),
        (
            "Penalty(ref_logp_T, ref_logp_T, logp_T > 0)",
            "loss_T has no gradient, so it would do nothing; make it depend on logp_T.",
        ),
        (
            "Penalty((logp_T + 1).abs().sqrt(), ref_logp_T, logp_T > 0)",
            "the gradient of loss_T is not finite (",
        ),
        ("[][logp_T]", "failed on a trial call (TypeError: "),
    ],
)
def test_a_divergence_that_returns_what_it_must_not(write, returned, said):
    source = f"from megatron_rapo.algo import Penalty\ndef d(logp_T, ref_logp_T, log_rho_cap): return {returned}\n"
    path = write(source)
    message = refused(divergence=f"{path}:d")
    assert message.startswith(f"algorithm.divergence='{path}:d': {said}")


def test_a_divergence_that_cannot_be_called(write):
    path = write("def d(logp_T): return logp_T\nfour = 4\n")
    assert refused(divergence=f"{path}:d") == (
        f"algorithm.divergence='{path}:d': cannot be called with (logp_T, ref_logp_T, log_rho_cap): too many "
        "positional arguments; give it these parameters."
    )
    assert refused(divergence=f"{path}:four").endswith(":four': is 4, which cannot be called; name a function.")
    assert refused(divergence=f"{path}:e").endswith(":e': has no 'e'; use one of its functions: d.")


# --- advantages ---


@pytest.mark.parametrize("name", builtin_names.ADVANTAGES)
def test_a_built_in_advantage(name):
    assert advantage_of(name) is ADVANTAGES[name]


@pytest.mark.parametrize("by", ["file", "module"])
def test_an_advantage_of_ones_own_is_in_the_training_sequences(load, write, monkeypatch, by):
    path = write("def tripled(deviations_PG, baseline_PG): return 3 * deviations_PG\n")
    monkeypatch.syspath_prepend(path.parent)
    config = load(f"algorithm.advantage={path if by == 'file' else path.stem}:tripled")
    assert [each.advantage for each in to_sequences(GROUPS, config)] == [1.5, -1.5, -0.75, 0.75]


def test_the_audit_takes_an_advantage_of_ones_own(write):
    path = write("def same(deviations_PG, baseline_PG): return deviations_PG\n")
    built_in, own = (
        audit(AlgorithmConfig(advantage=name), RewardConfig()).terms["on-policy"]["surrogate"]
        for name in ("mean", f"{path}:same")
    )
    assert own == built_in


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("deviations_PG.sum(-1)", "the result has shape [2] and torch.float64, from inputs of shape [2, 4]; return "),
        ("deviations_PG.float()", "the result has shape [2, 4] and torch.float32, from inputs of shape [2, 4]; "),
        ("deviations_PG.tolist()", "the result is list; return a tensor."),
        ("deviations_PG / deviations_PG.std(-1, keepdim=True)", "the result is not finite ([1.5, -0.5, -0.5, -0.5, "),
        ("1 / 0", "failed on a trial call (ZeroDivisionError: division by zero); fix it."),
    ],
)
def test_an_advantage_that_returns_what_it_must_not(write, returned, said):
    path = write(f"def a(deviations_PG, baseline_PG): return {returned}\n")
    assert refused(advantage=f"{path}:a").startswith(f"algorithm.advantage='{path}:a': {said}")


# --- shapes of phi ---


@pytest.mark.parametrize("name", builtin_names.PHI_SHAPES)
def test_a_built_in_shape_of_phi(name):
    assert phi_shape_of(name) is PHI_SHAPES[name]
    assert phi_shape_of(name)(torch.ones(2), 2.0, 10.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("by", ["file", "module"])
def test_a_shape_of_ones_own_is_in_the_training_sequences(load, write, monkeypatch, by):
    """Rewards are 1, 0, 0 and 1/2, in a range from -1 to 1."""
    path = write("def cubed(share): return share**3\n")
    monkeypatch.syspath_prepend(path.parent)
    own = f"algorithm.phi={path if by == 'file' else path.stem}:cubed"
    power = ["algorithm.phi=power", "algorithm.phi_exponent=3.0"]
    ends = [*RANGE, "algorithm.phi_min=0.25", "algorithm.phi_max=0.75"]
    found, expected = ([each.phi for each in to_sequences(GROUPS, load(*ends, *each))] for each in ([own], power))
    assert found == expected == pytest.approx([0.75, 0.3125, 0.3125, 0.4609375])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("share.sum()", "the result has shape [] and torch.float64, from inputs of shape [101]; return the same shape"),
        (
            "2 * share",
            "the result goes from 0 to 2, and phi would leave phi_min to phi_max; return numbers from 0 to 1.",
        ),
        ("share - 2", "the result goes from -2 to -1, "),
        ("1 - share", "the result falls somewhere, and phi must rise with the reward; let it rise."),
        ("share / share", "the result is not finite ([nan, 1.0, "),
        ("share.nothing", "failed on a trial call (AttributeError: "),
    ],
)
def test_a_shape_that_returns_what_it_must_not(write, returned, said):
    path = write(f"def s(share): return {returned}\n")
    assert refused(phi=f"{path}:s").startswith(f"algorithm.phi='{path}:s': {said}")


@pytest.mark.parametrize("field", ["phi_exponent", "phi_sharpness"])
def test_settings_of_built_in_shapes_do_nothing_with_ones_own(load, field):
    assert refusal(load, "algorithm.phi=mine:s", f"algorithm.{field}=3.0") == (
        f"algorithm.{field}=3.0: does nothing with algorithm.phi=mine:s; leave it out, or change that."
    )
