"""What a training step computes, and what a GPU could in that time: model FLOPs utilisation (MFU).

A FLOP is an addition or a multiplication. Counted is what the mathematics needs: what is computed again in the backward
pass (chunks of logits, layers with recomputation) is not, nor are norms, activations and the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_rapo.models import ModelShape
from megatron_rapo.preflight.seconds import HARDWARE

PEAK_BF16 = (  # words of the device's name, all of which it has; dense FLOPs per second, by the vendor's data sheets
    (("B200",), 2.25e15),
    (("GH200",), HARDWARE["h100"].bf16_flops),
    (("H200", "NVL"), 0.836e15),
    (("H200",), HARDWARE["h200"].bf16_flops),
    (("H100", "NVL"), 0.836e15),
    (("H100", "PCIe"), 0.756e15),
    (("H100",), HARDWARE["h100"].bf16_flops),
    (("A100",), HARDWARE["a100"].bf16_flops),
)
"""The first that fits is the device's. FP8's peaks are twice as high (not on an A100)."""


def peak_bf16_flops(device_name: str) -> float | None:
    """Return the peak FLOP/s of the named GPU, or None if the table lacks it."""
    return next((peak for words, peak in PEAK_BF16 if all(word in device_name for word in words)), None)


def matmul_numel(model: ModelShape) -> int:
    """Return the number of weights in a token's matrix products: linears and output layer, not the embedding."""
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    of_layer = model.hidden_size * (2 * q + 2 * kv + 3 * model.ffn_hidden_size)
    return model.num_layers * of_layer + model.vocab_size * model.hidden_size


def training_flops(model: ModelShape, lengths: Iterable[int]) -> int:
    """Forward and backward over sequences of these lengths.

    A weight takes 2 FLOPs of each token forward and 4 backward. Causal attention multiplies half of all pairs of a
    sequence's tokens twice (with keys, with values), over all heads: 2 length^2 q forward, twice that backward.
    """
    sizes = list(lengths)
    q = model.num_heads * model.head_dim
    attention = 3 * 2 * model.num_layers * q * sum(length**2 for length in sizes)
    return 6 * matmul_numel(model) * sum(sizes) + attention
