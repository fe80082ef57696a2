"""SwiGLU for layers of plain torch. F features of the feed-forward layer on this tensor rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class SwiGLU(MegatronModule):
    """Map [..., 2 F], gate and up, to silu(gate) * up, [..., F] (Shazeer, arXiv 2002.05202).

    Megatron's own SwiGLU, if no compiler fuses it, also keeps both factors for the backward pass. This keeps only its
    input, which is in memory anyway, and its backward pass allocates only the input's gradient.
    """

    def __init__(self, config: TransformerConfig, **_kwargs: Any) -> None:
        super().__init__(config=config)

    def forward(self, gate_and_up: Tensor) -> Tensor:
        output: Tensor = _SwiGLU.apply(gate_and_up)
        return output

    def sharded_state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return nothing: there are no parameters to save."""
        return {}


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        [gate_and_up] = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        grads = torch.empty_like(gate_and_up)
        of_gate, of_up = grads.chunk(2, dim=-1)
        torch.mul(grad, up, out=of_gate)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        torch.ops.aten.silu.out(gate, out=of_up).mul_(grad)
        return grads
