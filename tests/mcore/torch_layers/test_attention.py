"""Compare packed attention on one process with the definition for each sequence alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig

from megatron_rapo.mcore.torch_layers.attention import PackedAttention, SequencesForTorch, TorchSequences
from megatron_rapo.scoring.packing import PackedBatch, pack
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


def sequence(length: int, prompt: int) -> TrainingSequence:
    """Return a sequence: a prompt of five tokens `prompt`, then others."""
    return TrainingSequence(
        token_ids=np.array([prompt] * 5 + [0] * (length - 5), np.int32)[:length],
        prompt_length=min(5, length - 1),
        engine_logprobs=np.zeros(length - min(5, length - 1), np.float32),
        advantage=0.0,
        phi=1.0,
        reward=0.0,
    )


def sequences(lengths: Sequence[int], *, filling: int = 0) -> TorchSequences:
    batch = pack([sequence(n, 1) for n in lengths], range(len(lengths)), context=1, num_tokens=sum(lengths) + filling)
    return described(batch)


def described(batch: PackedBatch) -> TorchSequences:
    return SequencesForTorch.of(head_dim=HEAD_DIM, rope_theta=THETA, dtype=torch.float64, context_size=1)(batch)


def by_definition(query_LHD: torch.Tensor, key_LHD: torch.Tensor, value_LHD: torch.Tensor) -> torch.Tensor:
    """Return the attention of one sequence, [L, H * D]. Halves of a head are complex numbers, rotated by position."""
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


@pytest.mark.parametrize("masked_queries", [3, 4, 8])
def test_completions_that_share_a_prompt(
    attention: PackedAttention, monkeypatch: pytest.MonkeyPatch, masked_queries: int
) -> None:
    """They have 9, 7 and 7 tokens, and 8 and 6 with another prompt. All, some or none use masks."""
    monkeypatch.setattr("megatron_rapo.mcore.torch_layers.attention.MASKED_QUERIES", masked_queries)
    rollout = [sequence(n, 1) for n in (9, 7, 7)] + [sequence(n, 2) for n in (8, 6)]
    batch = pack(rollout, range(5), context=1, num_tokens=25, share_prompts=True)
    assert described(batch).runs == ((1, 4, None), (1, 5, 0), (2, 3, 0), (1, 4, None), (1, 4, 3), (1, 2, 3))
    torch.manual_seed(0)
    mixed = torch.randn(25, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    found = attention(*mixed.split([HEADS, KV_HEADS, KV_HEADS], dim=1), packed_seq_params=described(batch))[:, 0]

    prompts, starts = [0, 0, 0, 15, 15], [4, 9, 12, 19, 23]
    alone = [
        by_definition(*mixed[[*range(p, p + 4), *range(s, s + len(each.token_ids) - 4)]].split([6, 2, 2], dim=1))
        for p, s, each in zip(prompts, starts, rollout, strict=True)
    ]
    expected = torch.cat([alone[0], alone[1][4:], alone[2][4:], alone[3], alone[4][4:]])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    direction = torch.randn_like(expected)
    gradient, expected_gradient = (torch.autograd.grad((out * direction).sum(), mixed)[0] for out in (found, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=2e-6)


def test_filling_reaches_nothing(attention: PackedAttention) -> None:
    query, key, value = torch.randn(3, 12, KV_HEADS, HEAD_DIM, dtype=torch.float64)
    alone = attention(query[:9], key[:9], value[:9], packed_seq_params=sequences([5, 4]))
    filled = attention(query, key, value, packed_seq_params=sequences([5, 4], filling=3))
    assert torch.equal(filled[:9], alone)


def test_equal_neighbours_are_one_run() -> None:
    assert sequences([9, 4, 4, 4, 2, 4], filling=4).runs == ((1, 9, None), (3, 4, None), (1, 2, None), (2, 4, None))
