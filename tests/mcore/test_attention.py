"""Packed attention on one process against each sequence by itself, by the definition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig

from megatron_rapo.mcore.attention import PackedAttention, SequencesForTorch, TorchSequences
from megatron_rapo.packing import pack
from megatron_rapo.types import TrainingSequence

HEADS, KV_HEADS, HEAD_DIM, THETA = 6, 2, 8, 100.0


@pytest.fixture(scope="module")
def attention() -> Iterator[PackedAttention]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    groups = ProcessGroupCollection()
    groups.cp = dist.group.WORLD
    config = TransformerConfig(
        num_layers=1, hidden_size=1, num_attention_heads=HEADS, num_query_groups=KV_HEADS, kv_channels=HEAD_DIM
    )
    yield PackedAttention(config, pg_collection=groups)
    dist.destroy_process_group()


def sequences(lengths: Sequence[int], *, filling: int = 0) -> TorchSequences:
    zeros = [
        TrainingSequence(
            token_ids=np.zeros(n, np.int32),
            prompt_length=1,
            engine_logprobs=np.zeros(n - 1, np.float32),
            advantage=0.0,
            phi=1.0,
            reward=0.0,
        )
        for n in lengths
    ]
    batch = pack(zeros, range(len(lengths)), context=1, num_tokens=sum(lengths) + filling)
    return SequencesForTorch.of(head_dim=HEAD_DIM, rope_theta=THETA, dtype=torch.float64, context_size=1)(batch)


def by_definition(query_LHD: torch.Tensor, key_LHD: torch.Tensor, value_LHD: torch.Tensor) -> torch.Tensor:
    """Of one sequence, [L, H * D]: pairs of a head's halves are complex numbers, which positions turn."""
    angle_LD = torch.outer(
        torch.arange(len(query_LHD)).double(), THETA ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM / 2))
    )
    turn_L1D = torch.polar(torch.ones_like(angle_LD), angle_LD)[:, None]

    def turned(heads_LHD: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(*heads_LHD.chunk(2, -1)) * turn_L1D
        return torch.cat([pairs.real, pairs.imag], -1)

    key_LHD, value_LHD = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (turned(key_LHD), value_LHD))
    scores_HLL = torch.einsum("qhd,khd->hqk", turned(query_LHD), key_LHD) / HEAD_DIM**0.5
    later_LL = torch.ones(len(query_LHD), len(query_LHD), dtype=torch.bool).triu(1)
    weights_HLL = scores_HLL.masked_fill(later_LL, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights_HLL, value_LHD).flatten(1)


@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], [9, 4, 4, 1], [3, 8, 3]])
def test_outputs_and_gradients(attention: PackedAttention, lengths: list[int]) -> None:
    torch.manual_seed(len(lengths))
    size = sum(lengths)
    mixed = torch.randn(size, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    query, key, value = mixed.split([HEADS, KV_HEADS, KV_HEADS], dim=1)  # views, as Megatron gives them
    found = attention(query, key, value, packed_seq_params=sequences(lengths))
    expected = torch.cat(
        [by_definition(*qkv) for qkv in zip(*(t.split(lengths) for t in (query, key, value)), strict=True)]
    )
    assert found.shape == (size, 1, HEADS * HEAD_DIM)
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=2e-6)  # angles are float32, as everywhere

    direction = torch.randn_like(expected)
    gradient, expected_gradient = (
        torch.autograd.grad((out * direction).sum(), mixed)[0] for out in (found[:, 0], expected)
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=2e-6)


def test_filling_reaches_nothing(attention: PackedAttention) -> None:
    query, key, value = torch.randn(3, 12, KV_HEADS, HEAD_DIM, dtype=torch.float64)
    alone = attention(query[:9], key[:9], value[:9], packed_seq_params=sequences([5, 4]))
    filled = attention(query, key, value, packed_seq_params=sequences([5, 4], filling=3))
    assert torch.equal(filled[:9], alone)


def test_equal_neighbours_are_one_run() -> None:
    assert sequences([9, 4, 4, 4, 2, 4], filling=4).runs == ((1, 9), (3, 4), (1, 2), (2, 4))
