"""RMSNorm for layers of plain torch. D hidden size, or size of a head."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, usable with sequence parallelism (Megatron's own wrapper refuses it).

    On a CPU torch computes RMSNorm in several operations and also keeps the normalised input. This keeps only the
    input, which is in memory anyway, and one number for each row.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        # finalize_model_grads sums gradients of parameters with this mark over the tensor ranks
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return normed


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, of D, in float32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x.float() if x.dtype.itemsize < 4 else x
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (wide * inverse).mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, inverse = ctx.saved_tensors
        size, dtype = x.shape[-1], inverse.dtype
        x_TD, grad_TD = x.reshape(-1, size).to(dtype), grad.reshape(-1, size).to(dtype)
        weight_D, inverse_T = weight_D.to(dtype), inverse.flatten()
        product_TD = grad_TD * x_TD
        shrink_T = (product_TD @ weight_D).mul_(inverse_T.pow(3)).div_(size)
        grad_x_TD = (grad_TD * weight_D).mul_(inverse_T[:, None]).addcmul_(x_TD, shrink_T[:, None], value=-1)
        return grad_x_TD.to(x.dtype).view_as(x), (inverse_T @ product_TD).to(weight_D.dtype), None
