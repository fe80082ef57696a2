"""Log-probabilities, entropy, exact KL and the whole loss on the device are the definitions' in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import bench_loss
from benchmarks.bench_loss import Case
from megatron_rapo.algo import DIVERGENCES, LossInputs, LossSettings, rapo_loss
from megatron_rapo.scoring.output_head import token_scores
from tests.scoring import output_head_worker as small
from tests.scoring.test_output_head import TOLERANCES

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def error(found: Tensor, expected: Tensor) -> float:
    """Largest |difference|, relative to the largest number if that is above 1; inf for nan."""
    expected = expected.double().cpu()
    worst = (found.double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(worst.nan_to_num(nan=float("inf")))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", small.CASES)
def test_every_loss_of_a_small_vocabulary(case: str, device: str) -> None:
    """Repeat the checks of tests/scoring/test_output_head.py on the GPU: chunks, padding, logits up to 1e4."""
    vocab_size, (of_values, of_gradients) = small.CASES[case].vocab_size, TOLERANCES[case]
    for name, variant in small.variants(small.CASES[case]).items():
        inputs = small.make_inputs(small.CASES[case], variant)
        expected = small.by_definition(inputs, vocab_size)
        found = small.ours(on_device(inputs, device), vocab_size, None)
        assert {value.device.type for value in found.values()} == {device}
        for key, value in expected.items():
            limit = of_gradients if key.endswith("gradient") or variant.itself else of_values
            assert error(found[key], value) <= limit, f"{name}, {key}"


def on_device(inputs: small.Inputs, device: str) -> small.Inputs:
    reference = inputs.reference
    return replace(
        inputs,
        **{name: getattr(inputs, name).to(device) for name in ("hidden_TD", "weight_VD", "scale_T", "targets_T")},
        coefficients={name: values_T.to(device) for name, values_T in inputs.coefficients.items()},
        reference=reference
        and replace(
            reference,
            **{name: getattr(reference, name).to(device) for name in ("hidden_TD", "weight_VpD", "scale_T")},
        ),
    )


SIZES = {"cpu": (24, 1000, 64), "cuda": (256, 151_936, 2048)}  # tokens, vocabulary, hidden size
WHOLE = {  # by dtype: limits of the largest and the mean error of a value, nats, and of the gradients, relative norm
    "float32": (1e-4, 1e-5, 1e-5),
    "bfloat16": (0.1, 0.01, 0.02),  # logits are rounded to bfloat16, as the engine's are: up to 2^-5 each
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", WHOLE)
def test_a_whole_vocabulary(dtype: str, direction: str, device: str) -> None:
    tokens, vocab_size, hidden_size = SIZES[device]
    case = Case(tokens=tokens, vocab_size=vocab_size, hidden_size=hidden_size, dtype=dtype, device=device, threads=1)
    inputs = bench_loss.make_inputs(case)
    inputs = inputs._replace(reference=replace(inputs.reference, direction=direction))
    found = scored(inputs, torch.float32)
    expected = scored(inputs, torch.float64)
    worst, mean, of_gradients = WHOLE[dtype]
    for name in ("logp", "entropy", "kl"):
        difference_T = (found[name].double() - expected[name]).abs()
        assert difference_T.max() <= worst and difference_T.mean() <= mean, name
        assert expected[name].abs().mean() > 0.1
    for name in ("hidden_gradient", "weight_gradient"):
        off = (found[name].double() - expected[name]).norm() / expected[name].norm()
        assert off <= of_gradients, f"{name}: {off}"


def scored(inputs: bench_loss.Inputs, wide: torch.dtype) -> dict[str, Tensor]:
    """Values and gradients: float32 by chunks from the inputs as they are, float64 by whole logits of the same."""
    hidden_TD, weight_VD, targets_T, coefficients_3T, reference = inputs
    if wide == torch.float64:
        hidden_TD, weight_VD = (tensor.detach().double().requires_grad_() for tensor in (hidden_TD, weight_VD))
        values = defined(hidden_TD, weight_VD, targets_T, reference)
    else:
        ones_T = torch.ones_like(reference.scale_T)
        head = {"vocab_size": len(weight_VD), "reference": reference, "chunk_tokens": max(1, len(targets_T) // 3)}
        values = list(token_scores(hidden_TD, weight_VD, targets_T, ones_T, **head))
    loss = sum((c_T * value_T).sum() for c_T, value_T in zip(coefficients_3T, values, strict=True))
    gradients = torch.autograd.grad(loss, (hidden_TD, weight_VD))
    names = ("logp", "entropy", "kl", "hidden_gradient", "weight_gradient")
    return dict(zip(names, (*(value.detach() for value in values), *gradients), strict=True))


def defined(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, reference: Any) -> list[Tensor]:
    """Return the log-probability, the entropy and the KL of each token."""
    logp_TV = (hidden_TD @ weight_VD.T).log_softmax(-1)
    ref_logits_TV = reference.hidden_TD.double() @ reference.weight_VpD.double().T
    ref_logp_TV = (reference.scale_T.double()[:, None] * ref_logits_TV).log_softmax(-1)
    p_TV, q_TV = (ref_logp_TV, logp_TV) if reference.direction == "forward" else (logp_TV, ref_logp_TV)
    return [
        logp_TV.gather(1, targets_T[:, None])[:, 0],
        -(logp_TV.exp() * logp_TV).sum(-1),
        (p_TV.exp() * (p_TV - q_TV)).sum(-1),
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_and_its_gradient(divergence: str, device: str) -> None:
    found, expected = whole_loss(divergence, device, torch.float32), whole_loss(divergence, "cpu", torch.float64)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu().double(), value, rtol=1e-5, atol=1e-5)
    assert expected["gradient of logp"].abs().mean() > 0.1


def whole_loss(divergence: str, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the loss and its metrics by token, and the gradients, of 4,096 random tokens."""
    generator = torch.Generator().manual_seed(0)
    old, moved, ref, engine, advantage = torch.randn(5, 4096, generator=generator).to(device, dtype)
    entropy, kl = (torch.rand(2, 4096, generator=generator) * 3).to(device, dtype)
    mask = (torch.rand(4096, generator=generator) < 0.9).to(device)
    logp = (old + 0.2 * moved).requires_grad_()
    entropy.requires_grad_()
    kl.requires_grad_()
    given = LossInputs(
        logp_T=logp,
        entropy_T=entropy,
        kl_T=kl,
        old_logp_T=old,
        ref_logp_T=old + 0.5 * ref,
        engine_logp_T=old + 0.05 * engine,
        advantage_T=advantage,
        weight_T=torch.ones_like(old),
        mask_T=mask,
    )
    settings = LossSettings(
        divergence=divergence,
        alpha=0.0 if divergence == "none" else 0.5,
        beta=0.1,
        clip_low=0.2,
        clip_high=0.2,
        importance_cap=2.0,
        log_rho_cap=1.0,
    )
    sums = rapo_loss(given, settings)
    exact = DIVERGENCES[divergence].exact
    inputs = {"logp": logp, "entropy": entropy, **({"kl": kl} if exact else {})}
    gradients = torch.autograd.grad(sums.loss, list(inputs.values()))
    by_token = {name: value / len(old) for name, value in [("loss", sums.loss.detach()), *sums.metrics.items()]}
    return {
        **{name: value.double() for name, value in by_token.items()},
        **{f"gradient of {name}": value for name, value in zip(inputs, gradients, strict=True)},
    }
