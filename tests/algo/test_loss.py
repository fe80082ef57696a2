"""Check the loss by hand, with a plain-Python copy, by finite differences and in expectation, in fp64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.distributions import Categorical

from megatron_rapo.algo import DIVERGENCES, QUANTITIES, LossInputs, LossSettings, rapo_loss
from megatron_rapo.algo.loss import clipped_surrogate
from megatron_rapo.scoring.output_head import ReferenceHead, token_scores
from tests.algo.enumeration import V, make_world

SETTINGS = {
    "divergence": "none",
    "alpha": 0.0,
    "beta": 0.0,
    "clip_low": 0.2,
    "clip_high": 0.3,
    "importance_cap": 2.0,
    "log_rho_cap": 20.0,
}
GRADIENTS = ("logp_T", "entropy_T", "kl_T")
CONSTANTS = ("old_logp_T", "ref_logp_T", "engine_logp_T", "advantage_T", "weight_T", "sequence_log_ratio_T")
LOG2 = math.log(2.0)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Run:
    """The results of a call of the loss."""

    loss: float
    by: dict[str, torch.Tensor]  # gradients by the names in GRADIENTS
    metrics: dict[str, float]


def run(logp_T, **given):
    """Run the loss. Defaults: on-policy, at the reference, advantage 0, weight 1, all tokens selected."""
    ones_T = torch.ones_like(logp_T)
    tensors = {
        **{"logp_T": logp_T, "entropy_T": ones_T, "kl_T": ones_T, "old_logp_T": logp_T, "ref_logp_T": logp_T},
        **{"engine_logp_T": logp_T, "advantage_T": 0 * logp_T, "weight_T": ones_T, "mask_T": ones_T.bool()},
        **{name: given.pop(name) for name in (*GRADIENTS, *CONSTANTS, "mask_T") if name in given},
    }
    tensors = {n: v if v is None else v.clone().requires_grad_(n in GRADIENTS) for n, v in tensors.items()}
    leaves = [tensors[name] for name in GRADIENTS]
    splits = given.pop("splits", {})
    result = rapo_loss(LossInputs(**tensors), LossSettings(**SETTINGS | given), splits)
    gradients = torch.autograd.grad(result.loss, leaves, materialize_grads=True)
    assert not any(value.requires_grad for value in result.metrics.values())
    metrics = {name: value.item() for name, value in result.metrics.items()}
    return Run(result.loss.item(), dict(zip(GRADIENTS, gradients, strict=True)), metrics)


# --- by hand ---

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
    log_ratio_T = f64(math.log(ratio)).requires_grad_()
    surrogate_T, clipped_T = clipped_surrogate(log_ratio_T, f64(advantage), clip_low=0.2, clip_high=0.3)
    assert surrogate_T.item() == pytest.approx(expected, abs=1e-12)
    assert clipped_T.tolist() == [clipped]
    gradient = torch.autograd.grad(surrogate_T.sum(), log_ratio_T)[0].item()
    assert gradient == pytest.approx(0.0 if clipped else ratio * advantage, abs=1e-12)


@pytest.mark.parametrize("of_sequence", [False, True])
@pytest.mark.parametrize(("ratio", "advantage", "expected", "clipped"), CLIP)
def test_the_loss_is_minus_the_surrogate(ratio, advantage, expected, clipped, of_sequence):
    """It uses the token's own ratio, or only the ratio of its sequence."""
    given = {"old_logp_T": f64(-3.0), "engine_logp_T": f64(-3.0), "advantage_T": f64(advantage)}
    if of_sequence:
        found = run(f64(-2.0), **given, sequence_log_ratio_T=f64(math.log(ratio)))
    else:
        found = run(f64(-3.0 + math.log(ratio)), **given)
    assert found.loss == pytest.approx(-expected, abs=1e-12)
    assert found.by["logp_T"].item() == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-12)
    assert found.metrics["surrogate"] == pytest.approx(expected, abs=1e-12)
    assert found.metrics["clipped"] == clipped


def test_sums_not_means():
    found = run(f64(-1.0, -2.0, -3.0), advantage_T=f64(1.0, 2.0, -4.0))
    assert found.loss == pytest.approx(-(1.0 + 2.0 - 4.0))
    torch.testing.assert_close(found.by["logp_T"], f64(-1.0, -2.0, 4.0))
    assert found.metrics["surrogate"] == pytest.approx(-1.0) and found.metrics["entropy"] == pytest.approx(3.0)


def test_entropy_is_a_bonus():
    found = run(f64(-1.0, -2.0), entropy_T=f64(0.5, 1.5), beta=0.25)
    assert found.loss == pytest.approx(-0.25 * 2.0)
    assert found.by["entropy_T"].tolist() == [-0.25, -0.25]  # a step against the gradient raises the entropy
    assert found.by["logp_T"].tolist() == [0.0, 0.0]
    assert found.metrics["entropy"] == pytest.approx(2.0) and found.metrics["entropy_bonus"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("divergence", "loss_of_one", "value_of_one", "gradient"),
    [
        # pi = 1/4, pihat = 1/2: rho = 2 (tests/algo/test_divergences.py)
        ("rapo_paper", 2 * LOG2 - 1, 2 * LOG2 - 1, -2 * LOG2),
        ("forward_kl", 2 * LOG2, 2 * LOG2 - 1, -1.0),
        ("forward_kl_k3", 1 - LOG2, 1 - LOG2, -1.0),
        ("reverse_kl", 0.5 * LOG2**2, 1 - LOG2, -LOG2),
        ("reverse_kl_k3", 1 - LOG2, 1 - LOG2, -LOG2),
        ("none", 0.0, 0.0, 0.0),
    ],
)
def test_divergence_is_a_penalty(divergence, loss_of_one, value_of_one, gradient):
    found = run(f64(math.log(0.25)), ref_logp_T=f64(math.log(0.5)), divergence=divergence, alpha=0.3)
    assert found.loss == pytest.approx(0.3 * loss_of_one, abs=1e-14)
    assert found.by["logp_T"].item() == pytest.approx(0.3 * gradient, abs=1e-14)
    assert found.by["entropy_T"].item() == found.by["kl_T"].item() == 0.0
    assert found.metrics["divergence"] == pytest.approx(value_of_one, abs=1e-14)  # alpha is not in it


@pytest.mark.parametrize("divergence", ["forward_kl_exact", "reverse_kl_exact"])
def test_an_exact_divergence_is_the_output_heads(divergence):
    """rho = 2 and pi / engine = 2 have no effect."""
    given = {"ref_logp_T": f64(math.log(0.5)), "engine_logp_T": f64(math.log(0.125)), "divergence": divergence}
    found = run(f64(math.log(0.25)), kl_T=f64(0.7), alpha=0.3, **given)
    assert found.loss == pytest.approx(0.3 * 0.7) and found.metrics["divergence"] == pytest.approx(0.7)
    assert found.by["kl_T"].item() == pytest.approx(0.3) and found.by["logp_T"].item() == 0.0
    with pytest.raises(AssertionError, match=f"{divergence} is a sum over the vocabulary"):
        zeros = {name: f64(0.0) for name in ("logp_T", "entropy_T", *CONSTANTS)}
        inputs = LossInputs(**zeros, mask_T=torch.tensor([True]))
        rapo_loss(inputs, LossSettings(**SETTINGS | {"divergence": divergence}))


def test_weights_by_hand():
    """Tokens have weights 1/2 and 2, and rho = 2 as above. Metrics outside of the objective are not weighted."""
    found = run(
        f64(0.25, 0.25).log(),
        ref_logp_T=f64(0.5, 0.5).log(),
        entropy_T=f64(0.5, 1.5),
        advantage_T=f64(3.0, 1.0),
        weight_T=f64(0.5, 2.0),
        **{"divergence": "forward_kl", "alpha": 0.3, "beta": 0.25},
    )
    surrogate, penalty, entropy = 0.5 * 3.0 + 2.0 * 1.0, 2.5 * 2 * LOG2, 0.5 * 0.5 + 2.0 * 1.5
    assert found.loss == pytest.approx(-(surrogate - 0.3 * penalty + 0.25 * entropy))
    torch.testing.assert_close(found.by["logp_T"], f64(0.5 * (-3.0 - 0.3), 2.0 * (-1.0 - 0.3)))
    torch.testing.assert_close(found.by["entropy_T"], f64(-0.125, -0.5))
    assert found.metrics["surrogate"] == pytest.approx(surrogate)
    assert found.metrics["divergence"] == pytest.approx(2.5 * (2 * LOG2 - 1))
    assert found.metrics["kl"] == pytest.approx(2 * (2 * LOG2 - 1))  # the mean over tokens alike
    assert found.metrics["entropy_bonus"] == pytest.approx(0.25 * entropy)
    assert found.metrics["entropy"] == pytest.approx(2.0) and found.metrics["rho"] == pytest.approx(4.0)


def test_importance_weights_by_hand():
    """The surrogate's weight is pi_old / engine, the divergence's pi / engine. Both are at most 2 and detached.

    token  engine  old   pi    pihat  pi_old/engine  pi/engine  w = pi/pi_old
    0      1/4     3/8   3/8   3/4    3/2            3/2        1
    1      1/8     1/2   1/2   1      4 -> 2         4 -> 2     1
    """
    found = run(
        f64(0.375, 0.5).log(),
        engine_logp_T=f64(0.25, 0.125).log(),
        ref_logp_T=f64(0.75, 1.0).log(),
        advantage_T=f64(1.0, -1.0),
        **{"divergence": "forward_kl", "alpha": 0.1},
    )
    surrogate = 1.5 * 1.0 + 2.0 * -1.0
    penalty = 1.5 * -math.log(0.375) + 2.0 * -math.log(0.5)  # rho - 1 = 1 for both
    assert found.loss == pytest.approx(-surrogate + 0.1 * penalty)
    # w A times the weight, and 1 - rho times the weight; nothing from the weights themselves
    torch.testing.assert_close(found.by["logp_T"], f64(-1.5 - 0.1 * 1.5, 2.0 - 0.1 * 2.0))
    assert found.metrics["surrogate"] == pytest.approx(surrogate)
    assert found.metrics["divergence"] == pytest.approx((1.5 + 2.0) * (2 * LOG2 - 1))


def test_the_penalty_is_weighted_by_the_current_policy_not_the_old_one():
    """engine 1/4, old 1/4, pi 1/2, pihat 1: 1 - rho = -1, so the gradient is -alpha * pi/engine = -0.1 * 2."""
    given = {"old_logp_T": f64(0.25).log(), "engine_logp_T": f64(0.25).log(), "ref_logp_T": f64(0.0)}
    found = run(f64(0.5).log(), **given, divergence="forward_kl", alpha=0.1, importance_cap=10.0)
    assert found.by["logp_T"].item() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("engine", "old", "pi", "of_surrogate", "of_divergence"),
    [
        (0.25, 0.25, 0.25, 0, 0),
        (0.25, 0.5, 0.5, 0, 0),  # 2 is not beyond the cap of 2
        (0.125, 0.5, 0.25, 1, 0),  # pi_old / engine = 4
        (0.125, 0.25, 0.5, 0, 1),  # pi / engine = 4
        (0.125, 0.5, 0.5, 1, 1),  # both, and one token all the same
        (0.5, 0.0625, 0.0625, 0, 0),  # small weights are not truncated
    ],
)
def test_truncated_importance_weights_are_counted(engine, old, pi, of_surrogate, of_divergence):
    logp_T = f64(math.log(pi), -1.0)
    given = {"old_logp_T": f64(math.log(old), -1.0), "engine_logp_T": f64(math.log(engine), -1.0), "alpha": 0.1}
    for name, kind in DIVERGENCES.items():
        found = run(logp_T, **given, divergence=name, importance_cap=2.0 + 1e-12)  # its logarithm and back is not exact
        assert found.metrics["importance_capped"] == (of_surrogate or (of_divergence and kind.corrected)), name
        found = run(logp_T, **given, divergence=name, mask_T=torch.tensor([False, True]))
        assert found.metrics["importance_capped"] == 0, name


def test_metrics_of_the_estimate_by_hand_and_by_split():
    """Four tokens, the last masked out. rho = 2, 1/2, 8 -> 4 (the cap). pi / engine = 1, 3/2, 4 -> 2 (the cap)."""
    pi, rho, weight = f64(0.25, 0.375, 0.125, 0.5), f64(2.0, 0.5, 8.0, 9.0), f64(1.0, 1.5, 4.0, 9.0)
    found = run(
        pi.log(),
        ref_logp_T=(pi * rho).log(),
        engine_logp_T=(pi / weight).log(),
        advantage_T=f64(1.0, 1.0, 2.0, 5.0),
        entropy_T=f64(0.5, 1.0, 2.0, 7.0),
        mask_T=torch.tensor([True, True, True, False]),
        splits={"low": torch.tensor([True, False, True, True]), "none": torch.zeros(4).bool()},
        **{"divergence": "rapo_paper", "alpha": 0.1, "beta": 0.5, "log_rho_cap": math.log(4.0)},
    )
    paper = [2 * LOG2 - 1, 0.5 * -LOG2 + 0.5, 4 * 2 * LOG2 - 3]  # rho log rho - rho + 1
    each = {
        "surrogate": [1.0, 1.5, 4.0],
        "divergence": [paper[0], 1.5 * paper[1], 2.0 * paper[2]],
        "entropy_bonus": [0.25, 0.5, 1.0],
        "kl": [paper[0], 1.5 * paper[1], 2.0 * paper[2]],
        "entropy": [0.5, 1.0, 2.0],
        "clipped": [0, 0, 0],
        "ratio_capped": [0, 0, 0],
        "staleness": [0, 0, 0],
        "log_rho_capped": [0, 0, 1],
        "importance_capped": [0, 0, 1],
        "rho": [2.0, 0.5, 4.0],
        "rho_squared": [4.0, 0.25, 16.0],
        "importance": [1.0, 1.5, 4.0],  # not truncated: its effective sample size is to show the tail
        "importance_squared": [1.0, 2.25, 16.0],
    }
    expected = {
        **{name: sum(values) for name, values in each.items()},
        **{f"{name}/low": values[0] + values[2] for name, values in each.items()},
        **{f"{name}/none": 0.0 for name in each},
        **{"tokens/low": 2, "tokens/none": 0},
    }
    assert found.metrics == {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()}


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [90.0, -90.0])
def test_policies_far_apart_stay_finite_and_are_counted(advantage, log_ratio):
    """Without the clamp exp(90) is infinite in float32, and the clipped token has the gradient 0 * inf = nan."""
    logp_T = torch.tensor([-1.0 - max(0.0, -log_ratio)], requires_grad=True)
    inputs = LossInputs(
        logp_T=logp_T,
        entropy_T=torch.zeros(1),
        **dict.fromkeys(("old_logp_T", "engine_logp_T"), logp_T.detach() - log_ratio),
        ref_logp_T=logp_T.detach(),
        advantage_T=torch.tensor([advantage]),
        weight_T=torch.ones(1),
        mask_T=torch.ones(1).bool(),
    )
    found = rapo_loss(inputs, LossSettings(**SETTINGS | {"clip_high": 0.2, "log_rho_cap": 10.0}))
    (gradient,) = torch.autograd.grad(found.loss, logp_T)
    assert found.loss.isfinite() and gradient.isfinite().all() and found.metrics["ratio_capped"] == 1
    unclipped = advantage * log_ratio < 0  # the side on which the surrogate keeps its gradient
    assert (gradient != 0).all() == unclipped


# --- GSPO ---


def test_gspo_by_its_own_equation():
    """1/S sum_i min(s_i A_i, clip(s_i) A_i), s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|): arXiv 2507.18071, equation 5.

    With weights 1 / (S |y_i|), values and gradients equal those of whole sequences, differentiated directly.
    """
    lengths, advantages = [3, 2, 4, 1, 2], [1.0, -2.0, 0.5, -1.0, 2.0]
    log_ratios = [0.05, 0.1, 0.5, -0.6, -0.7]  # free, free, clipped above, clipped below, pulled back
    generator = torch.Generator().manual_seed(0)
    logp_T = -1 - torch.rand(12, dtype=torch.float64, generator=generator)
    noise_T = 0.3 * torch.randn(12, dtype=torch.float64, generator=generator)
    pieces = [
        piece - piece.mean() + log_ratio for piece, log_ratio in zip(noise_T.split(lengths), log_ratios, strict=True)
    ]
    old_logp_T = logp_T - torch.cat(pieces)
    lengths_S, advantage_S = torch.tensor(lengths), f64(*advantages)

    leaf_T = logp_T.clone().requires_grad_()
    ratio_S = torch.stack([piece.mean() for piece in (leaf_T - old_logp_T).split(lengths)]).exp()
    expected = -torch.minimum(ratio_S * advantage_S, ratio_S.clamp(0.8, 1.3) * advantage_S).mean()
    gradient_T = torch.autograd.grad(expected, leaf_T)[0]

    given = {"old_logp_T": old_logp_T, "engine_logp_T": old_logp_T}
    given["advantage_T"] = advantage_S.repeat_interleave(lengths_S)
    given["sequence_log_ratio_T"] = f64(*log_ratios).repeat_interleave(lengths_S)
    found = run(logp_T, **given, weight_T=(1 / (5.0 * lengths_S.double())).repeat_interleave(lengths_S))
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(found.by["logp_T"], gradient_T, rtol=0, atol=1e-14)

    # Equation 14, the token form: sequences 0, 1 and 4 have -s A at each token, the clipped ones nothing.
    of_sequences = [-math.exp(0.05), 2 * math.exp(0.1), 0.0, 0.0, -2 * math.exp(-0.7)]
    found = run(logp_T, **given)
    torch.testing.assert_close(found.by["logp_T"], f64(*of_sequences).repeat_interleave(lengths_S))
    assert found.metrics["clipped"] == 4 + 1


# --- finite differences ---

AS_WRITTEN = ["rapo_paper", "forward_kl_k3", "reverse_kl", "forward_kl_exact", "reverse_kl_exact", "none"]
"""Divergences that detach nothing but the importance weight."""


@pytest.mark.parametrize("divergence", AS_WRITTEN)
def test_finite_differences_of_the_loss_as_written(divergence):
    """Differentiate by the logits of eight tokens, through the output head's log-probability, entropy and exact KL.

    Every importance weight is truncated and so constant. Advantages have both signs, ratios are clipped on both sides
    and not at all, one token is masked out, and each has another weight.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    logits_TV, ref_logits_TV, targets_T = normal(8, V), normal(8, V), torch.randint(V, (8,), generator=generator)
    eye, ones_T, phi_T = torch.eye(V, dtype=torch.float64), torch.ones(8, dtype=torch.float64), f64(0.4, 1.0).repeat(4)
    direction = DIVERGENCES[divergence].exact
    reference = direction and ReferenceHead(hidden_TD=ref_logits_TV, weight_VpD=eye, scale_T=phi_T, direction=direction)

    def chosen(logits_TV):
        return logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]

    logp_T = chosen(logits_TV)
    given = {
        "old_logp_T": logp_T - f64(0.5, -0.5, 0.5, -0.5, 0.1, -0.1, 0.1, 0.5),
        "ref_logp_T": chosen(phi_T[:, None] * ref_logits_TV),
        "engine_logp_T": logp_T - 2.0,
        "advantage_T": f64(1.0, 1.5, -0.5, -1.0, 2.0, -2.0, 1.0, 1.0),
        "weight_T": f64(0.5, 1.0, 1.5, 2.0, 0.75, 1.25, 1.0, 1.0),
        "mask_T": torch.tensor([True] * 6 + [False, True]),
    }
    settings = SETTINGS | {"divergence": divergence, "alpha": 0.7, "beta": 0.3, "importance_cap": 1.0}

    def loss(logits_TV):
        scores = token_scores(logits_TV, eye, targets_T, ones_T, vocab_size=V, reference=reference)
        return rapo_loss(LossInputs(**scores._asdict(), **given), LossSettings(**settings))

    sums = loss(logits_TV)
    assert sums.metrics["clipped"] == 3 and sums.metrics["importance_capped"] == 7  # tokens 0, 3, 7; all masked in
    assert torch.autograd.gradcheck(lambda z_TV: loss(z_TV).loss, logits_TV.requires_grad_(), atol=1e-8, rtol=1e-6)
    gradient_TV = torch.autograd.grad(loss(logits_TV).loss, logits_TV)[0]
    assert not gradient_TV[6].any() and gradient_TV[[0, 1, 2, 3, 4, 5, 7]].abs().amax(-1).min() > 0.01


REGIMES = {
    "on-policy": {},
    "an engine of its own": {"engine_noise": 0.5},
    "an older policy": {"old_noise": 0.5},
    "both": {"old_noise": 0.5, "engine_noise": 0.5},
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_finite_differences_of_the_objective(divergence, regime):
    """The loss's expected gradient is that of the objective, with the quantity that the divergence is named after.

    Its expected metrics are the terms of the objective. k3 is uncorrected, so both hold only if the policy is the
    engine. The surrogate's expectation is sum_v pi_old(v) min(w A, clip(w) A) for every engine.
    """
    world, alpha, beta = make_world(3, 0.4, **REGIMES[regime]), 0.3, 0.2
    kind = DIVERGENCES[divergence]

    def terms(logits_V, quantity):
        logp_V = logits_V.log_softmax(0)
        ratio_V = (logp_V - world.old_logp_V).exp()
        free_V, clipped_V = ratio_V * world.advantage_V, ratio_V.clamp(0.8, 1.3) * world.advantage_V
        surrogate = (world.old_logp_V.exp() * torch.minimum(free_V, clipped_V)).sum()
        penalty = QUANTITIES[quantity](logp_V, world.ref_logp_V) if quantity else f64(0.0).sum()
        return {
            "surrogate": surrogate,
            "divergence": penalty,
            "entropy_bonus": beta * Categorical(logits=logits_V).entropy(),
        }

    def loss(logits_V):
        now = terms(logits_V, kind.gradient)
        return -(now["surrogate"] - alpha * now["divergence"] + now["entropy_bonus"])

    h = 1e-5
    steps = h * torch.eye(V, dtype=torch.float64)
    expected = torch.stack([(loss(world.logits_V + s) - loss(world.logits_V - s)) / (2 * h) for s in steps])
    found = world.expected_gradient(divergence, alpha=alpha, beta=beta)
    metrics = world.expected_loss(world.logits_V, divergence, alpha=alpha, beta=beta).metrics
    values = {name: metrics[name] - value for name, value in terms(world.logits_V, kind.value).items()}
    if divergence == "forward_kl_k3" and regime != "on-policy":
        assert (found - expected).abs().max() > 1e-2 and values.pop("divergence").abs() > 1e-2
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert all(abs(difference) < 1e-12 for difference in values.values())
    assert (metrics["clipped"] > 0) == ("old_noise" in REGIMES[regime])


def random_tokens(count=64, seed=0):
    """Return tokens of every kind: clips on both sides, truncated weights, capped log rho, masked-out tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(count, dtype=torch.float64, generator=generator)

    logp_T = -3 + normal(1.0)
    return {
        "logp_T": logp_T,
        "entropy_T": 1 + normal(0.2).abs(),
        "kl_T": normal(0.5).abs(),
        "old_logp_T": logp_T + normal(0.3),
        "ref_logp_T": logp_T + normal(1.5),
        "engine_logp_T": logp_T + normal(0.5),
        "advantage_T": normal(1.0),
        "weight_T": 0.5 + normal(0.5).abs(),
        "sequence_log_ratio_T": normal(0.3),
        "mask_T": torch.rand(count, generator=generator) < 0.75,
    }


def plain_loss(token, frozen_logp, *, divergence, ratio, settings):
    """Return one token's loss by the formulas. `frozen_logp` is the policy's log-probability where it is detached."""
    low, high, cap = 1 - settings["clip_low"], 1 + settings["clip_high"], settings["log_rho_cap"]
    logp, advantage = token["logp_T"], token["advantage_T"]
    log_ratio = logp - token["old_logp_T"] if ratio == "token" else token["sequence_log_ratio_T"] + logp - frozen_logp
    surrogate = min(math.exp(log_ratio) * advantage, min(max(math.exp(log_ratio), low), high) * advantage)
    held = min(max(token["ref_logp_T"] - frozen_logp, -cap), cap)  # log rho within the cap ...
    log_rho = held + (frozen_logp - logp)  # ... and moving with the policy all the same
    k3 = math.exp(log_rho) - 1 - log_rho
    penalty = {
        "forward_kl": (math.exp(held) - 1) * -logp,
        "forward_kl_exact": token["kl_T"],
        "forward_kl_k3": k3,
        "rapo_paper": math.exp(log_rho) * log_rho - math.exp(log_rho) + 1,
        "reverse_kl": 0.5 * log_rho**2,
        "reverse_kl_exact": token["kl_T"],
        "reverse_kl_k3": k3 * math.exp(logp - frozen_logp),
        "none": 0.0,
    }[divergence]
    to_old = min(math.exp(token["old_logp_T"] - token["engine_logp_T"]), settings["importance_cap"])
    to_policy = min(math.exp(frozen_logp - token["engine_logp_T"]), settings["importance_cap"])
    if divergence in ("forward_kl_k3", "forward_kl_exact", "reverse_kl_exact"):
        to_policy = 1.0
    objective = to_old * surrogate - settings["alpha"] * to_policy * penalty + settings["beta"] * token["entropy_T"]
    return -token["weight_T"] * objective


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_against_the_formula_and_its_finite_differences(divergence, ratio):
    tensors = random_tokens()
    changed = {"divergence": divergence, "alpha": 0.4, "beta": 0.05, "importance_cap": 1.5, "log_rho_cap": 2.0}
    found = run(**tensors | ({} if ratio == "sequence" else {"sequence_log_ratio_T": None}), **changed)
    columns = {name: values.tolist() for name, values in tensors.items()}
    chosen = [t for t, selected in enumerate(columns["mask_T"]) if selected]

    def one(t, name="logp_T", change=0.0):
        token = {each: column[t] for each, column in columns.items()}
        moved = token | {name: token[name] + change}
        return plain_loss(moved, token["logp_T"], divergence=divergence, ratio=ratio, settings=SETTINGS | changed)

    h = 1e-5
    assert found.loss == pytest.approx(sum(one(t) for t in chosen), rel=1e-12)
    for name in GRADIENTS:
        expected = torch.zeros(64, dtype=torch.float64)
        expected[chosen] = f64(*((one(t, name, h) - one(t, name, -h)) / (2 * h) for t in chosen))
        torch.testing.assert_close(found.by[name], expected, rtol=1e-6, atol=1e-8)
    kind, logp_T, mask_T = DIVERGENCES[divergence], tensors["logp_T"], tensors["mask_T"]
    capped = ((tensors["ref_logp_T"] - logp_T).abs() > 2.0)[mask_T].sum()
    assert capped > 0 and found.metrics["log_rho_capped"] == (0 if divergence == "none" or kind.exact else capped)
    assert 0 < found.metrics["clipped"] < len(chosen)
    sampled_from = torch.maximum(tensors["old_logp_T"], logp_T) if kind.corrected else tensors["old_logp_T"]
    beyond = (sampled_from - tensors["engine_logp_T"] > math.log(1.5))[mask_T].sum()
    assert 0 < found.metrics["importance_capped"] == beyond < len(chosen)


# --- masks ---


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", [*GRADIENTS, *CONSTANTS])
def test_what_is_masked_out_leaves_no_trace(name, divergence):
    """Values, metrics and gradients do not change, even if masked-out numbers are not finite."""
    tensors = random_tokens(count=8, seed=2)
    tensors["mask_T"][:2] = torch.tensor([False, True])
    settings = {"divergence": divergence, "alpha": 0.4, "beta": 0.05, "splits": {"all": torch.ones(8).bool()}}
    expected = run(**tensors, **settings)
    assert all(not gradient_T[0] for gradient_T in expected.by.values())
    for value in (math.inf, -math.inf, math.nan):
        changed = tensors[name].clone()
        changed[0] = value
        found = run(**tensors | {name: changed}, **settings)
        assert found.loss == expected.loss and found.metrics == expected.metrics
        assert all(torch.equal(found.by[each], expected.by[each]) for each in GRADIENTS)


def test_nothing_masked_in():
    tensors = random_tokens(count=8) | {"mask_T": torch.zeros(8).bool()}
    found = run(**tensors, divergence="rapo_paper", alpha=1.0, beta=1.0)
    assert found.loss == 0.0 and set(found.metrics.values()) == {0.0}
    assert not any(gradient_T.any() for gradient_T in found.by.values())
