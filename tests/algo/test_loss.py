"""The loss by hand, against a plain-Python copy of its formula, and in expectation."""

import math

import pytest
import torch

from megatron_rapo.algo import DIVERGENCES, rapo_loss
from megatron_rapo.algo.loss import clipped_surrogate

SETTINGS = {
    "divergence": "none",
    "alpha": 0.0,
    "beta": 0.0,
    "clip_low": 0.2,
    "clip_high": 0.3,
    "importance_cap": 2.0,
    "log_ratio_cap": 20.0,
}
INPUTS = ("old_logp_T", "ref_logp_T", "engine_logp_T", "advantage_T")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def tokens(logp_T, entropy_T=None, **given):
    """Arguments of rapo_loss: on-policy, at the reference, advantage 0 and all masked in, unless given otherwise."""
    logp_T = logp_T.clone().requires_grad_()
    entropy_T = (torch.ones_like(logp_T) if entropy_T is None else entropy_T.clone()).requires_grad_()
    inputs = {"old_logp_T": logp_T, "ref_logp_T": logp_T, "engine_logp_T": logp_T, "advantage_T": 0 * logp_T}
    inputs = {name: given.pop(name, value).detach().clone() for name, value in inputs.items()}
    inputs["mask_T"] = given.pop("mask_T", torch.ones_like(logp_T).bool())
    return logp_T, entropy_T, inputs, SETTINGS | given


def run(logp_T, entropy_T=None, **given):
    """Value, gradients by logp_T and entropy_T, and metrics of the loss."""
    logp_T, entropy_T, inputs, settings = tokens(logp_T, entropy_T, **given)
    result = rapo_loss(logp_T, entropy_T, **inputs, **settings)
    d_logp_T, d_entropy_T = torch.autograd.grad(result.loss, (logp_T, entropy_T))
    return result.loss.item(), d_logp_T, d_entropy_T, {name: value.item() for name, value in result.metrics.items()}


# w / A -> min(w A, clip(w, 0.8, 1.3) A) and whether the clip decided; then d/d log w is w A, and 0 where it did
CLIP = [
    (1.0, 2.0, 2.0, False),
    (1.25, 2.0, 2.5, False),
    (1.5, 2.0, 2.6, True),  # 1.3 * 2
    (0.5, 2.0, 1.0, False),  # too improbable already, but the advantage pulls it back
    (1.0, -2.0, -2.0, False),
    (0.9, -2.0, -1.8, False),
    (0.5, -2.0, -1.6, True),  # 0.8 * -2
    (1.5, -2.0, -3.0, False),  # too probable already, but the advantage pushes it back
    (1.5, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "clipped"), CLIP)
def test_clip(ratio, advantage, expected, clipped):
    logp_T = f64(-3.0 + math.log(ratio)).requires_grad_()
    surrogate_T, clipped_T = clipped_surrogate(logp_T, f64(-3.0), f64(advantage), clip_low=0.2, clip_high=0.3)
    assert surrogate_T.item() == pytest.approx(expected, abs=1e-12)
    assert clipped_T.tolist() == [clipped]
    gradient = torch.autograd.grad(surrogate_T.sum(), logp_T)[0].item()
    assert gradient == pytest.approx(0.0 if clipped else ratio * advantage, abs=1e-12)


@pytest.mark.parametrize(("ratio", "advantage", "expected", "clipped"), CLIP)
def test_the_loss_is_minus_the_surrogate(ratio, advantage, expected, clipped):
    loss, d_logp_T, _, metrics = run(
        f64(-3.0 + math.log(ratio)), old_logp_T=f64(-3.0), engine_logp_T=f64(-3.0), advantage_T=f64(advantage)
    )
    assert loss == pytest.approx(-expected, abs=1e-12)
    assert d_logp_T.item() == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-12)
    assert metrics["surrogate"] == pytest.approx(expected, abs=1e-12)
    assert metrics["clipped"] == clipped


def test_sums_not_means():
    loss, d_logp_T, _, metrics = run(f64(-1.0, -2.0, -3.0), advantage_T=f64(1.0, 2.0, -4.0))
    assert loss == pytest.approx(-(1.0 + 2.0 - 4.0))
    torch.testing.assert_close(d_logp_T, f64(-1.0, -2.0, 4.0))
    assert metrics["surrogate"] == pytest.approx(-1.0) and metrics["entropy"] == pytest.approx(3.0)


def test_entropy_is_a_bonus():
    loss, d_logp_T, d_entropy_T, metrics = run(f64(-1.0, -2.0), f64(0.5, 1.5), beta=0.25)
    assert loss == pytest.approx(-0.25 * 2.0)
    assert d_entropy_T.tolist() == [-0.25, -0.25]  # a step against the gradient raises the entropy
    assert d_logp_T.tolist() == [0.0, 0.0]
    assert metrics["entropy"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("divergence", "loss_of_one", "value_of_one", "gradient"),
    [
        # pi = 1/4, pihat = 1/2: rho = 2 (tests/algo/test_divergences.py)
        ("rapo_paper", 2 * math.log(2) - 1, 2 * math.log(2) - 1, -2 * math.log(2)),
        ("forward_kl", 4 * math.log(2), 2 * math.log(2) - 1, -2.0),
        ("reverse_kl", 0.5 * math.log(2) ** 2, 1 - math.log(2), -math.log(2)),
        ("none", 0.0, 0.0, 0.0),
    ],
)
def test_divergence_is_a_penalty(divergence, loss_of_one, value_of_one, gradient):
    """Its gradient raises log pi where the reference has more (rho > 1): d loss / d log pi < 0."""
    loss, d_logp_T, d_entropy_T, metrics = run(
        f64(math.log(0.25)), ref_logp_T=f64(math.log(0.5)), divergence=divergence, alpha=0.3
    )
    assert loss == pytest.approx(0.3 * loss_of_one, abs=1e-14)
    assert d_logp_T.item() == pytest.approx(0.3 * gradient, abs=1e-14)
    assert d_entropy_T.item() == 0.0
    assert metrics["divergence"] == pytest.approx(value_of_one, abs=1e-14)  # alpha is not in it


def test_importance_weights_by_hand():
    """The surrogate carries pi_old / engine, the divergence pi / engine; at most 2, and detached.

    token  engine  old   pi    pihat  pi_old/engine  pi/engine  w = pi/pi_old
    0      1/4     3/8   3/8   3/4    3/2            3/2        1
    1      1/8     1/2   1/2   1      4 -> 2         4 -> 2     1
    """
    loss, d_logp_T, _, metrics = run(
        f64(0.375, 0.5).log(),
        old_logp_T=f64(0.375, 0.5).log(),
        engine_logp_T=f64(0.25, 0.125).log(),
        ref_logp_T=f64(0.75, 1.0).log(),
        advantage_T=f64(1.0, -1.0),
        divergence="forward_kl",
        alpha=0.1,
    )
    surrogate = 1.5 * 1.0 + 2.0 * -1.0
    penalty = 1.5 * -2.0 * math.log(0.375) + 2.0 * -2.0 * math.log(0.5)  # rho = 2 for both
    assert loss == pytest.approx(-surrogate + 0.1 * penalty)
    # w A times the weight, and -rho times the weight; nothing from the weights themselves
    torch.testing.assert_close(d_logp_T, f64(-1.5 - 0.1 * 2.0 * 1.5, 2.0 - 0.1 * 2.0 * 2.0))
    assert metrics["surrogate"] == pytest.approx(surrogate)
    assert metrics["divergence"] == pytest.approx((1.5 + 2.0) * (2 * math.log(2) - 1))


def test_the_penalty_is_weighted_by_the_current_policy_not_the_old_one():
    """engine 1/4, old 1/4, pi 1/2, pihat 1/2: rho = 1, so the gradient is -alpha * pi/engine = -0.1 * 2."""
    _, d_logp_T, _, _ = run(
        f64(math.log(0.5)),
        old_logp_T=f64(math.log(0.25)),
        engine_logp_T=f64(math.log(0.25)),
        divergence="forward_kl",
        alpha=0.1,
        importance_cap=10.0,
    )
    assert d_logp_T.item() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("engine", "old", "pi", "capped"),
    [
        (0.25, 0.25, 0.25, 0),
        (0.25, 0.5, 0.5, 0),  # 2 is not beyond the cap of 2
        (0.125, 0.5, 0.25, 1),  # only the surrogate's weight: 4
        (0.125, 0.25, 0.5, 1),  # only the divergence's
        (0.125, 0.5, 0.5, 1),  # both, and one token all the same
        (0.5, 0.0625, 0.0625, 0),  # small weights are not truncated
    ],
)
def test_truncated_importance_weights_are_counted(engine, old, pi, capped):
    logp, old, engine = f64(math.log(pi), -1.0), f64(math.log(old), -1.0), f64(math.log(engine), -1.0)
    given = {"old_logp_T": old, "engine_logp_T": engine, "divergence": "forward_kl", "alpha": 0.1}
    *_, metrics = run(logp, **given, importance_cap=2.0 + 1e-12)  # its logarithm and back is not exact
    assert metrics["importance_capped"] == capped
    *_, metrics = run(logp, **given, mask_T=torch.tensor([False, True]))
    assert metrics["importance_capped"] == 0


def random_tokens(count=64, seed=0):
    """Every case at once: clips on both sides, truncated weights, capped log rho, masked-out tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(count, dtype=torch.float64, generator=generator)

    logp_T = -3 + normal(1.0)
    given = {
        "old_logp_T": logp_T + normal(0.3),
        "ref_logp_T": logp_T + normal(1.5),
        "engine_logp_T": logp_T + normal(0.5),
        "advantage_T": normal(1.0),
        "mask_T": torch.rand(count, generator=generator) < 0.75,
    }
    return logp_T, 1 + normal(0.2).abs(), given


def plain_loss(logp, entropy, frozen_logp, old, ref, engine, advantage, *, divergence, settings):
    """One token's loss as the paper writes it; `frozen_logp` is the policy wherever it is detached."""
    low, high, cap = 1 - settings["clip_low"], 1 + settings["clip_high"], settings["log_ratio_cap"]
    ratio = math.exp(logp - old)
    surrogate = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    frozen = ref - frozen_logp
    held = min(max(frozen, -cap), cap)  # log rho within the cap ...
    log_rho = held + (frozen_logp - logp)  # ... and moving with the policy all the same
    penalty = {
        "rapo_paper": math.exp(log_rho) * log_rho - math.exp(log_rho) + 1,
        "forward_kl": -math.exp(held) * logp,
        "reverse_kl": 0.5 * log_rho**2,
        "none": 0.0,
    }[divergence]
    to_old = min(math.exp(old - engine), settings["importance_cap"])
    to_policy = min(math.exp(frozen_logp - engine), settings["importance_cap"])
    return -(to_old * surrogate - settings["alpha"] * to_policy * penalty + settings["beta"] * entropy)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_against_the_formula_and_its_finite_differences(divergence):
    logp_T, entropy_T, given = random_tokens()
    changed = {"alpha": 0.4, "beta": 0.05, "importance_cap": 1.5, "log_ratio_cap": 2.0}
    settings = SETTINGS | changed
    loss, d_logp_T, d_entropy_T, metrics = run(logp_T, entropy_T, divergence=divergence, **changed, **given)
    columns = [given[name].tolist() for name in INPUTS]
    chosen = given["mask_T"].tolist()

    def one(t, d_logp=0.0, d_entropy=0.0):
        logp, rest = logp_T[t].item(), [column[t] for column in columns]
        entropy = entropy_T[t].item() + d_entropy
        return plain_loss(logp + d_logp, entropy, logp, *rest, divergence=divergence, settings=settings)

    indices, h = range(len(chosen)), 1e-5
    assert loss == pytest.approx(sum(one(t) for t in indices if chosen[t]), rel=1e-12)
    by_logp = f64(*((one(t, h) - one(t, -h)) / (2 * h) * chosen[t] for t in indices))
    by_entropy = f64(*((one(t, 0.0, h) - one(t, 0.0, -h)) / (2 * h) * chosen[t] for t in indices))
    torch.testing.assert_close(d_logp_T, by_logp, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(d_entropy_T, by_entropy, rtol=1e-6, atol=1e-8)
    capped = sum(abs(given["ref_logp_T"][t] - logp_T[t]).item() > 2.0 for t in indices if chosen[t])
    assert capped > 0 and metrics["log_ratio_capped"] == (0 if divergence == "none" else capped)
    assert 0 < metrics["clipped"] < sum(chosen)
    beyond = (torch.maximum(given["old_logp_T"], logp_T) - given["engine_logp_T"]) > math.log(1.5)
    assert 0 < metrics["importance_capped"] == (beyond & given["mask_T"]).sum() < sum(chosen)


@pytest.mark.parametrize("divergence", ["rapo_paper", "forward_kl", "reverse_kl"])
def test_expectation_off_policy(divergence):
    """Tokens drawn by the engine, weights not truncated: the mean gradient is the one that the name promises.

    Of the surrogate, with ratios inside the clip: grad sum_v pi(v) A(v), whatever the engine and the old policy are.
    """
    generator = torch.Generator().manual_seed(1)
    logits_V, ref_V, advantage_V, *noise = (torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(5))
    logits_V.requires_grad_()
    logp_V, ref_logp_V = logits_V.log_softmax(0), ref_V.log_softmax(0)
    old_V, engine_V = ((logits_V.detach() + 0.5 * each).log_softmax(0) for each in noise)
    loss = 0.0
    for v in range(6):  # one sampled token at a time, each as likely as the engine says
        token = {"old_logp_T": old_V, "ref_logp_T": ref_logp_V, "engine_logp_T": engine_V, "advantage_T": advantage_V}
        token = {name: values[v : v + 1].detach() for name, values in token.items()}
        settings = SETTINGS | {"clip_low": 0.999, "clip_high": 1e9, "importance_cap": 1e9, "alpha": 0.3}
        sums = rapo_loss(
            logp_V[v : v + 1],
            torch.zeros(1, dtype=torch.float64),
            mask_T=torch.tensor([True]),
            **token,
            **settings | {"divergence": divergence},
        )
        loss = loss + engine_V[v].exp().detach() * sums.loss
    found = torch.autograd.grad(loss, logits_V, retain_graph=True)[0]
    quantity = {
        "rapo_paper": 0.5 * (ref_logp_V.exp() * (ref_logp_V - logp_V) ** 2).sum(),
        "forward_kl": (ref_logp_V.exp() * (ref_logp_V - logp_V)).sum(),
        "reverse_kl": (logp_V.exp() * (logp_V - ref_logp_V)).sum(),
    }[divergence]
    expected = torch.autograd.grad(-(logp_V.exp() * advantage_V).sum() + 0.3 * quantity, logits_V)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def with_and_without(divergence, name):
    """The loss of a few tokens, and again with something not finite in a token that is masked out."""
    logp_T, entropy_T, given = random_tokens(count=8, seed=2)
    given["mask_T"][:2] = torch.tensor([False, True])
    inputs = {"logp_T": logp_T, "entropy_T": entropy_T, **given}
    settings = {"divergence": divergence, "alpha": 0.4, "beta": 0.05}
    expected = run(**inputs, **settings)
    for value in (math.inf, -math.inf, math.nan):
        changed = inputs[name].clone()
        changed[0] = value
        yield expected, run(**inputs | {name: changed}, **settings)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", ["logp_T", "entropy_T", *INPUTS])
def test_what_is_masked_out_is_not_in_the_sums(name, divergence):
    for expected, found in with_and_without(divergence, name):
        assert found[0] == expected[0] and found[3] == expected[3]
        assert torch.equal(found[1][1:], expected[1][1:])  # nor in the gradients of the others


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_is_masked_out_has_no_gradient(divergence):
    for name in ("logp_T", "entropy_T", *INPUTS):
        for _, found in with_and_without(divergence, name):
            assert found[1][0] == 0.0 and found[2][0] == 0.0, name


def test_nothing_masked_in():
    logp_T, entropy_T, given = random_tokens(count=8)
    given["mask_T"] = torch.zeros(8).bool()
    loss, d_logp_T, d_entropy_T, metrics = run(logp_T, entropy_T, divergence="rapo_paper", alpha=1.0, **given)
    assert loss == 0.0 and set(metrics.values()) == {0.0}
    assert not d_logp_T.any() and not d_entropy_T.any()


def test_metrics_are_detached_and_named():
    logp_T, entropy_T, inputs, settings = tokens(f64(-1.0), divergence="forward_kl", alpha=0.1)
    result = rapo_loss(logp_T, entropy_T, **inputs, **settings)
    assert list(result.metrics) == [
        *("surrogate", "divergence", "entropy", "clipped", "log_ratio_capped", "importance_capped")
    ]
    assert not any(value.requires_grad for value in result.metrics.values())
