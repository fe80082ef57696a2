"""The audit agrees with results by hand, and finds losses whose gradient does not match their name."""

import pytest
import torch

from megatron_rapo.algo import DIVERGENCES, divergences
from megatron_rapo.algo.divergences import Divergence
from megatron_rapo.audit import audit
from megatron_rapo.audit.measure import REGIMES
from megatron_rapo.audit.toy_policy import VOCABULARY, make_policy
from megatron_rapo.config import AlgorithmConfig, RewardConfig

PENALTIES = sorted(DIVERGENCES.keys() - {"none"})


@pytest.fixture(scope="module")
def audits():
    torch.set_num_threads(1)
    return {name: audit(AlgorithmConfig(divergence=name), RewardConfig()) for name in DIVERGENCES}


@pytest.mark.parametrize("name", PENALTIES)
def test_every_name_is_its_gradients(audits, name):
    found = audits[name]
    assert found.agrees and found.nearest == found.named == DIVERGENCES[name].gradient
    penalty = found.terms["on-policy"]["divergence"]
    assert penalty.bias < 1e-9
    assert penalty.cosines[found.named] == pytest.approx(1.0, abs=1e-9)
    assert all(cosine < 0.97 for quantity, cosine in penalty.cosines.items() if quantity != found.named)
    assert penalty.value == pytest.approx(penalty.true_value, rel=1e-9)


@pytest.mark.parametrize("name", PENALTIES)
def test_off_policy_only_the_uncorrected_one_is_biased(audits, name):
    bias = audits[name].terms["off-policy"]["divergence"].bias
    assert bias > 0.03 if name == "forward_kl_k3" else bias < 1e-9


def test_what_the_documentation_says_of_noise(audits):
    noise = {name: audits[name].terms["on-policy"]["divergence"].noise for name in PENALTIES}
    assert noise["forward_kl"] == pytest.approx(noise["forward_kl_k3"], rel=1e-9)
    assert noise["reverse_kl"] == pytest.approx(noise["reverse_kl_k3"], rel=1e-9)
    assert noise["rapo_paper"] == max(noise.values())
    assert noise["forward_kl_exact"] < noise["forward_kl"] / 3
    assert noise["reverse_kl_exact"] < noise["reverse_kl"] / 3


def test_without_a_divergence_there_is_nothing_to_name(audits):
    found = audits["none"]
    assert found.agrees and found.named is None and found.nearest is None
    assert found.terms["on-policy"].keys() == {"surrogate", "entropy"}


@pytest.mark.parametrize("kind", ["mean_std", "mean", "leave_one_out"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_surrogate_is_the_policy_gradient_on_policy(kind, ratio):
    settings = AlgorithmConfig(divergence="none", advantage=kind, ratio=ratio, beta=0.0)
    terms = audit(settings, RewardConfig(wrong=-0.5, unformatted=-1.0), temperature=0.7).terms
    assert terms["on-policy"]["surrogate"].bias < 1e-9
    assert terms["off-policy"]["surrogate"].bias > 0.01  # clipped, and without the weight of the tokens before


def test_entropy_is_the_true_one(audits):
    for regime in REGIMES:
        entropy = audits["forward_kl"].terms[regime]["entropy"]
        assert entropy.bias < 1e-9
        assert entropy.value == pytest.approx(entropy.true_value, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.6, 1.3])
@pytest.mark.parametrize("phi_min", [0.0, 0.5])
def test_holds_at_other_temperatures_and_exponents(temperature, phi_min):
    for name in ("forward_kl", "forward_kl_exact"):
        found = audit(AlgorithmConfig(divergence=name, phi_min=phi_min), RewardConfig(), temperature)
        assert found.agrees
        assert found.terms["off-policy"]["divergence"].bias < 1e-9


def test_coupling_is_of_estimates_with_a_phi_that_varies(audits):
    assert audits["forward_kl"].coupling > 0.01
    assert audits["forward_kl_exact"].coupling < 1e-9
    constant = audit(AlgorithmConfig(divergence="forward_kl", phi="constant"), RewardConfig())
    assert constant.coupling < 1e-9


def test_a_cap_too_tight_is_found_out():
    found = audit(AlgorithmConfig(divergence="forward_kl", log_rho_cap=0.3), RewardConfig())
    assert not found.agrees
    assert found.capped["log_rho_capped"] > 0.5
    truncated = audit(AlgorithmConfig(divergence="forward_kl", importance_cap=1.0), RewardConfig())
    assert not truncated.agrees
    assert truncated.terms["on-policy"]["divergence"].bias < 1e-9  # off-policy alone weights exceed 1
    assert 0.1 < truncated.capped["importance_capped"] < 0.9


@pytest.mark.parametrize(
    ("estimate", "called", "really"),
    [
        (divergences.forward_kl_k3, "reverse_kl", "forward_kl"),  # the field's label of k3
        (divergences.rapo_paper, "forward_kl", "half_squared_log_rho"),  # what the paper sets out to descend
        (divergences.reverse_kl, "forward_kl", "reverse_kl"),
    ],
)
def test_a_wrong_name_is_found_out(monkeypatch, estimate, called, really):
    mislabelled = Divergence(gradient=called, value="forward_kl", estimate=estimate, corrected=True)
    monkeypatch.setitem(DIVERGENCES, "forward_kl", mislabelled)
    found = audit(AlgorithmConfig(divergence="forward_kl"), RewardConfig())
    assert not found.agrees
    assert (found.named, found.nearest) == (called, really)
    assert found.terms["on-policy"]["divergence"].bias > 0.05


def test_the_policy_is_a_distribution_over_all_completions():
    policy = make_policy(0, RewardConfig(), 0.8, off_policy=True)
    _, tokens_T = policy.path
    assert len(set(map(tuple, tokens_T.view(-1, 2).tolist()))) == VOCABULARY**2
    assert float(policy.chances(policy.engine_SV).sum()) == pytest.approx(1.0, abs=1e-12)
    states_T, _ = policy.path
    passed_S = torch.zeros_like(policy.visits()).index_add_(
        0, states_T, policy.batch(advantage_N=policy.rewards_N, phi_N=policy.rewards_N).weight_T
    )
    torch.testing.assert_close(passed_S, policy.visits(), rtol=0, atol=1e-12)
    on_policy = make_policy(0, RewardConfig(), 0.8, off_policy=False)
    assert torch.equal(on_policy.engine_SV, on_policy.policy_SV) and torch.equal(on_policy.old_SV, on_policy.policy_SV)
    assert not torch.equal(policy.engine_SV, policy.old_SV)
