"""Bytes and seconds equal those computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from megatron_rapo.config import Config
from megatron_rapo.models import ModelShape
from megatron_rapo.preflight.batch import batch
from megatron_rapo.preflight.seconds import Hardware, seconds, traffic

NUMEL = 7_615_616_512  # of Qwen2.5-7B
SLOW = Hardware("slow", 1e12, 1e9, 1e9, 1e8, utilisation=0.5, bandwidth=0.5)


def test_traffic(model: ModelShape, configured: Callable[..., Config]) -> None:
    config = configured()
    found = traffic(model, config, batch(config, world=16, tokens_per_sequence=2000), world=16)
    quarter = NUMEL / 4 * 2  # bytes: what a tensor rank has, and what each other rank of its four needs of it
    assert found.copied == pytest.approx(quarter, rel=0.01)
    assert found.sent == pytest.approx(3 * quarter, rel=0.1)
    assert found.gradients == pytest.approx(4 * 2 * 3 / 4 * NUMEL / 4 * 4, rel=0.01)
    # 28 layers, 2 sums forward in each of 3 passes and 2 backward, each sent 2 * 3/4 times
    assert found.tensor_parallel == pytest.approx(28 * 8 * 1.5 * 1024 * 2000 / 4 * 3584 * 2, rel=0.01)


def test_where_layouts_coincide_nothing_is_sent(model: ModelShape, configured: Callable[..., Config]) -> None:
    config = configured("parallel.tensor=1", "parallel.sequence=false")
    found = traffic(model, config, batch(config, world=8, tokens_per_sequence=2000), world=8)
    assert (found.sent, found.tensor_parallel) == (0, 0) and found.copied == NUMEL * 2


def test_seconds(model: ModelShape, configured: Callable[..., Config]) -> None:
    config = configured("parallel.tensor=1", "parallel.sequence=false", "parallel.pipeline=1")
    sizes = batch(config, world=8, tokens_per_sequence=2000)
    moved = traffic(model, config, sizes, world=8)
    found = seconds(model, config, sizes, moved, SLOW, world=8)
    flops = 8 * 0.5e12
    assert found["score"] == pytest.approx(2 * 2 * NUMEL * 1024 * 2000 / flops, rel=0.01)
    assert found["train"] == pytest.approx(6 * NUMEL * 1024 * 2000 / flops + moved.gradients / 0.5e9, rel=0.01)
    assert found["reshard"] == pytest.approx(2 * NUMEL * 2 / 0.5e9, rel=0.01)
    # 128 completions of an engine, all at a time (16 GiB hold 149 of 2000 tokens): 2000 tokens each, and in the mean
    # half of their keys and values (2 * 28 * 4 * 128 numbers a token) to read
    read = NUMEL * 2 + 128 * 1000 * 2 * 28 * 4 * 128 * 2
    assert found["rollout"] == pytest.approx(2000 * read / 0.5e9, rel=0.01)
    recomputed = configured("parallel.tensor=1", "parallel.sequence=false", "model.recompute=full")
    again = seconds(model, recomputed, sizes, moved, SLOW, world=8)
    assert again["train"] - moved.gradients / 0.5e9 == pytest.approx(8 * NUMEL * 1024 * 2000 / flops, rel=0.01)
