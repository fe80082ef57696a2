"""FLOPs by hand, and which peak is whose."""

from __future__ import annotations

import pytest

from benchmarks.gpu.flops import matmul_numel, peak_bf16_flops, training_flops
from tests.qwen2_5 import QWEN2_5


def test_flops_by_hand() -> None:
    """Qwen2.5-3B: 36 layers of q 2048, k and v 256, o 2048, three of 11008; 151936 rows of output."""
    model = QWEN2_5["3B"]
    of_layer = 2048 * 2048 + 2 * 2048 * 256 + 2048 * 2048 + 3 * 2048 * 11008
    assert matmul_numel(model) == 36 * of_layer + 151936 * 2048 == 3_085_697_024
    # Two sequences: of 10 tokens, and of 20. One head pair of tokens costs 2 * 128 FLOPs with keys, and with values.
    pairs = (10 * 10 + 20 * 20) / 2
    attention = 36 * 16 * pairs * (2 * 128 + 2 * 128) * 3
    assert training_flops(model, [10, 20]) == 6 * 30 * 3_085_697_024 + attention


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 836),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
    ],
)
def test_peaks(name: str, teraflops: float) -> None:
    assert peak_bf16_flops(name) == pytest.approx(teraflops * 1e12)


def test_a_gpu_that_is_not_in_the_table() -> None:
    assert peak_bf16_flops("NVIDIA GeForce RTX 4090") is None
