"""Batch sizes equal those computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from megatron_rapo.config import Config
from megatron_rapo.preflight.batch import batch


def test_every_size(configured: Callable[..., Config]) -> None:
    """128 prompts of 8 completions on 16 GPUs: 4 data-parallel ranks, 16 engines, 4 optimizer steps."""
    found = batch(configured(), world=16, tokens_per_sequence=2000)
    assert (found.prompts, found.completions, found.completions_per_engine) == (128, 1024, 64)
    assert (found.optimizer_steps, found.sequences_per_optimizer_step, found.sequences_per_data_rank) == (4, 256, 64)
    assert found.microbatches_per_data_rank == 16  # 64 sequences of 2000 tokens are 15.6 times 8192
    assert found.tokens == 1024 * 2000 and found.bubble == 0


@pytest.mark.parametrize(
    ("settings", "bubble"),
    [
        (["parallel.pipeline=2"], 1 / 33),
        (["parallel.pipeline=4"], 3 / 67),
        (["parallel.pipeline=4", "parallel.virtual_pipeline=7"], (3 / 7) / (64 + 3 / 7)),
    ],
)
def test_the_bubble(configured: Callable[..., Config], settings: list[str], bubble: float) -> None:
    """The bubble is (p - 1) / (m + p - 1) for p stages and m micro-batches, less with virtual stages."""
    assert batch(configured(*settings), world=16, tokens_per_sequence=2048).bubble == pytest.approx(bubble)


def test_micro_batches_of_virtual_stages_come_in_pipelines_full(configured: Callable[..., Config]) -> None:
    config = configured("parallel.pipeline=4", "parallel.virtual_pipeline=7")
    assert batch(config, world=16, tokens_per_sequence=2000).microbatches_per_data_rank == 64  # 62.5 are needed
