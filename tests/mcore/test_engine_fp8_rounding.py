"""Check rounding to FP8 and back. tests/reshard/engine_parity_worker.py has a real engine with such weights."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_rapo.mcore.engine_fp8_rounding import rounded_rows


def rounded(weight: Tensor) -> Tensor:
    return rounded_rows(weight, weight.abs().amax(dim=1, keepdim=True))


def test_values_by_hand() -> None:
    """e4m3 has 3 mantissa bits. Its numbers are 32 apart from 256 to 448, and 1 apart from 8 to 16."""
    weight = torch.tensor([[448.0, 300.0, 8.6, 0.0], [-0.875, 0.33, 0.5, -0.875]])
    scale = 0.875 / 448  # of the second row; 0.33 / scale = 168.96, where the numbers are 16 apart
    expected = torch.tensor([[448.0, 288.0, 9.0, 0.0], [-0.875, 176 * scale, 0.5, -0.875]])
    assert torch.allclose(rounded(weight), expected, rtol=1e-6, atol=0)


def test_a_row_of_zeros_stays_and_what_is_rounded_is_so_already() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    once = rounded(weight)
    assert torch.equal(once[3], weight[3]) and not torch.equal(once, weight)
    assert torch.allclose(rounded(once), once, rtol=1e-6, atol=0)
    assert ((once - weight).abs() / weight.abs().clamp(min=1e-2)).max() < 0.07  # half of 2^-3, at most


def test_a_part_of_each_row_is_rounded_as_the_whole_is() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert torch.equal(torch.cat([rounded_rows(p, largest) for p in weight.chunk(2, dim=1)], dim=1), rounded(weight))
    assert not torch.equal(torch.cat([rounded(p) for p in weight.chunk(2, dim=1)], dim=1), rounded(weight))
