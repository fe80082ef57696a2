"""Compare SwiGLU of torch's layers with the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_rapo.mcore.torch_layers.swiglu import SwiGLU


def swiglu() -> SwiGLU:
    return SwiGLU(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))


def by_definition(gate_and_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_and_up.chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def test_values() -> None:
    x = torch.randn(5, 1, 12, dtype=torch.float64)
    torch.testing.assert_close(swiglu()(x), by_definition(x))


def test_gradient() -> None:
    x = torch.randn(5, 1, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu(), x)


def test_what_it_is_given_stays_as_it_was() -> None:
    x = torch.randn(5, 12, requires_grad=True)
    before, grad = x.detach().clone(), torch.randn(5, 6)
    grad_before = grad.clone()
    swiglu()(x).backward(grad)
    assert torch.equal(x, before) and torch.equal(grad, grad_before)


def test_bfloat16_rounds_as_torch_does() -> None:
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    gate, up = x.chunk(2, dim=-1)
    assert torch.equal(swiglu()(x), F.silu(gate) * up)
