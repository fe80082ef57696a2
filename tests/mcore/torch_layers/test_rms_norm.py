"""Compare RMSNorm of torch's layers with the definition and with torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_rapo.mcore.torch_layers.rms_norm import RMSNorm

SIZE, EPS = 16, 1e-3


def norm(dtype: torch.dtype) -> RMSNorm:
    megatron = TransformerConfig(num_layers=1, hidden_size=SIZE, num_attention_heads=1, params_dtype=dtype)
    made = RMSNorm(megatron, SIZE, EPS)
    torch.nn.init.normal_(made.weight)
    return made


def test_values() -> None:
    made, x = norm(torch.float64), torch.randn(5, 1, SIZE, dtype=torch.float64)
    torch.testing.assert_close(made(x), x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * made.weight)


def test_gradients() -> None:
    made, x = norm(torch.float64), torch.randn(3, 2, SIZE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(made, {"weight": weight}, x), (x, made.weight)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_it_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients agree to the last one or two bits of the number format."""
    made, x = norm(dtype), torch.randn(50, SIZE, dtype=dtype, requires_grad=True)
    grad = torch.randn(50, SIZE, dtype=dtype)
    ours = torch.autograd.grad(made(x), (x, made.weight), grad)
    out = F.rms_norm(x, (SIZE,), made.weight, EPS)
    theirs = torch.autograd.grad(out, (x, made.weight), grad)
    for own, its in [(made(x), out), *zip(ours, theirs, strict=True)]:
        assert own.dtype == its.dtype
        torch.testing.assert_close(own, its, rtol=tolerance, atol=tolerance * float(its.detach().abs().max()))


def test_a_vector_of_zeros() -> None:
    made, x = norm(torch.float32), torch.zeros(2, SIZE, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
