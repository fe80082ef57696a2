import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_rapo.scoring.packing import aligned, assign, context_chunks, families, pack, packed_length, split_context
from megatron_rapo.types import TrainingSequence

# --- assign ---


@pytest.mark.parametrize(
    ("lengths", "ranks", "max_tokens", "multiple_of", "expected"),
    [
        # Longest first to the emptiest: 5 | 4, then 3 to the 4 (7), 2 to the 5 (7), 1 to the first of the two.
        ([1, 2, 3, 4, 5], 2, 10, 1, [[[4, 1, 0]], [[3, 2]]]),
        # 16 tokens are two micro-batches of 8: 8 | 4 + 4.
        ([4, 8, 4], 1, 8, 1, [[[1], [0, 2]]]),
        # 12 tokens would be 3 micro-batches of 4, but no two 3s share one.
        ([3, 3, 3, 3], 1, 4, 1, [[[0], [1], [2], [3]]]),
        # Three micro-batches hold them; a multiple of 2 is 4, and one stays empty.
        ([5, 5, 5], 1, 5, 2, [[[0], [1], [2], []]]),
        # Fewer sequences than ranks.
        ([7], 3, 8, 1, [[[0]], [[]], [[]]]),
        ([], 2, 8, 3, [[[], [], []], [[], [], []]]),
        # The longest two, and the shortest two, are on different ranks.
        ([4, 4, 2, 1], 2, 4, 1, [[[0], [2]], [[1], [3]]]),
        # Equal lengths go in order.
        ([2, 2, 2, 2], 2, 4, 1, [[[0, 2]], [[1, 3]]]),
    ],
)
def test_assign_by_hand(lengths, ranks, max_tokens, multiple_of, expected):
    """Here every token has the same cost."""
    assert assign(lengths, lengths, num_ranks=ranks, max_tokens=max_tokens, multiple_of=multiple_of) == expected


@pytest.mark.parametrize(
    ("lengths", "ranks", "max_tokens", "expected"),
    [
        # 36 | 9 + 9 + 9 + 9: the ranks have 6 and 12 tokens, and the same to do.
        ([6, 3, 3, 3, 3], 2, 12, [[[0]], [[1, 2, 3, 4]]]),
        # The same where the second rank has two micro-batches for them; the first has one that is empty.
        ([6, 3, 3, 3, 3], 2, 6, [[[0], []], [[1, 3], [2, 4]]]),
        # 64 | 16 + 16 + 16, which is cheaper and full: the last goes to the 8.
        ([8, 4, 4, 4, 1], 1, 12, [[[0, 4], [1, 2, 3]]]),
        # 81 | 25 + 25, without room for the 3 (81 + 9), but for the 2.
        ([9, 5, 5, 3, 2], 1, 12, [[[0, 3], [1, 2, 4]]]),
    ],
)
def test_assign_shares_out_costs(lengths, ranks, max_tokens, expected):
    """Here the cost of a sequence is the square of its length."""
    assert assign(lengths, [n * n for n in lengths], num_ranks=ranks, max_tokens=max_tokens) == expected


@pytest.mark.parametrize("seed", range(40))
def test_assign_holds_what_it_promises(seed):
    rng = random.Random(seed)
    max_tokens, ranks, multiple_of = rng.randint(8, 200), rng.randint(1, 5), rng.choice([1, 1, 2, 3])
    lengths = [rng.randint(1, max_tokens) for _ in range(rng.randint(0, 120))]
    costs = [n + rng.choice([0.0, 0.1]) * n * n for n in lengths]
    found = assign(lengths, costs, num_ranks=ranks, max_tokens=max_tokens, multiple_of=multiple_of)
    again = assign(tuple(lengths), tuple(costs), num_ranks=ranks, max_tokens=max_tokens, multiple_of=multiple_of)
    assert found == again

    per_rank = len(found[0])
    assert len(found) == ranks and all(len(batches) == per_rank for batches in found)
    assert per_rank % multiple_of == 0 and per_rank > 0
    bins = [indices for batches in found for indices in batches]
    assert sorted(i for indices in bins for i in indices) == list(range(len(lengths)))  # each exactly once
    assert max(sum(lengths[i] for i in indices) for indices in bins) <= max_tokens
    assert all(costs[a] >= costs[b] for indices in bins for a, b in itertools.pairwise(indices))


@pytest.mark.parametrize("ranks", [1, 4, 16])
@pytest.mark.parametrize("max_tokens", [8192, 16384, 32768])
@pytest.mark.parametrize("median", [400, 1000])
def test_rollouts_of_mathematics_are_shared_out_evenly(ranks, max_tokens, median):
    """Lengths are log-normal, up to 8k. Costs are those of a 1.5B model."""
    rng = np.random.default_rng(ranks)
    lengths = np.clip(rng.lognormal(np.log(median), 0.9, 64 * ranks), 20, 8192).astype(int).tolist()
    costs = [n + n * n / 35_890 for n in lengths]
    found = assign(lengths, costs, num_ranks=ranks, max_tokens=max_tokens)
    of_ranks = [sum(costs[i] for indices in batches for i in indices) for batches in found]
    assert max(of_ranks) < 1.01 * sum(costs) / ranks
    assert len(found[0]) <= -(-sum(lengths) // (ranks * max_tokens)) + 1


def test_a_sequence_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError) as raised:
        assign([3, 9, 8], [3, 9, 8], num_ranks=2, max_tokens=8)
    assert str(raised.value) == "sequence of 9 tokens: longer than a micro-batch of 8 tokens."


@pytest.mark.parametrize(
    ("length", "context", "expected"), [(5, 1, 5), (5, 2, 8), (8, 2, 8), (1, 2, 4), (9, 4, 16), (16, 4, 16), (1, 3, 6)]
)
def test_aligned(length, context, expected):
    assert aligned(length, context) == expected


# --- pack ---

FIRST = TrainingSequence(
    token_ids=np.array([5, 6, 7, 8, 9], np.int32),
    prompt_length=2,
    engine_logprobs=np.array([-0.5, -0.25, -0.125], np.float32),
    advantage=1.5,
    phi=0.75,
    reward=1.0,
    weight=0.5,
    num_stale=2,
)
SECOND = TrainingSequence(
    token_ids=np.array([10, 11, 12], np.int32),
    prompt_length=1,
    engine_logprobs=np.array([-2.0, -1.0], np.float32),
    advantage=-0.5,
    phi=0.5,
    reward=0.25,
    weight=2.5,
)
LEFT_OUT = replace(SECOND, in_loss=False)
X = -1  # in sequence_T: filling


def fields(batch):
    return {name: value.tolist() for name, value in vars(batch).items() if value is not None}


def test_pack_by_hand():
    """Pack two sequences and two tokens of filling. Position t is about the token after it."""
    batch = pack([FIRST, SECOND], [7, 3], context=1, num_tokens=10)
    assert fields(batch) == {
        "token_ids_T": [5, 6, 7, 8, 9, 10, 11, 12, 0, 0],
        "targets_T": [6, 7, 8, 9, 0, 11, 12, 0, 0, 0],
        "position_T": [0, 1, 2, 3, 4, 0, 1, 2, 0, 1],
        "sampled_T": [False, True, True, True, False, True, True, False, False, False],
        "mask_T": [False, True, True, True, False, True, True, False, False, False],
        "advantage_T": [1.5, 1.5, 1.5, 1.5, 1.5, -0.5, -0.5, -0.5, 0.0, 0.0],
        "weight_T": [0.5, 0.5, 0.5, 0.5, 0.5, 2.5, 2.5, 2.5, 0.0, 0.0],
        "reward_T": [1.0, 1.0, 1.0, 1.0, 1.0, 0.25, 0.25, 0.25, 0.0, 0.0],
        "phi_T": [0.75, 0.75, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 1.0, 1.0],
        "engine_logp_T": [0.0, -0.5, -0.25, -0.125, 0.0, -2.0, -1.0, 0.0, 0.0, 0.0],
        "stale_T": [t in (1, 2) for t in range(10)],
        "sequence_T": [7, 7, 7, 7, 7, 3, 3, 3, X, X],
        "cu_seqlens": [0, 5, 8, 10],
    }
    assert batch.max_seqlen == 5


def test_pack_aligned_for_context_parallelism():
    """Sequences of 5 and 3 tokens are padded to 8 and 4. 4 more tokens are a sequence of filling."""
    batch = pack([FIRST, SECOND], [0, 1], context=2, num_tokens=16)
    assert fields(batch) == {
        "token_ids_T": [5, 6, 7, 8, 9, 0, 0, 0, 10, 11, 12, 0, 0, 0, 0, 0],
        "targets_T": [6, 7, 8, 9, 0, 0, 0, 0, 11, 12, 0, 0, 0, 0, 0, 0],
        "position_T": [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3],
        "sampled_T": [t in (1, 2, 3, 8, 9) for t in range(16)],
        "mask_T": [t in (1, 2, 3, 8, 9) for t in range(16)],
        "advantage_T": [1.5] * 5 + [0.0] * 3 + [-0.5] * 3 + [0.0] * 5,
        "weight_T": [0.5] * 5 + [0.0] * 3 + [2.5] * 3 + [0.0] * 5,
        "reward_T": [1.0] * 5 + [0.0] * 3 + [0.25] * 3 + [0.0] * 5,
        "phi_T": [0.75] * 5 + [1.0] * 3 + [0.5] * 3 + [1.0] * 5,
        "engine_logp_T": [0.0, -0.5, -0.25, -0.125, 0.0, 0.0, 0.0, 0.0, -2.0, -1.0] + [0.0] * 6,
        "stale_T": [t in (1, 2) for t in range(16)],
        "sequence_T": [0] * 5 + [X] * 3 + [1] * 3 + [X] * 5,
        "cu_seqlens": [0, 8, 12, 16],
    }


def test_pack_without_filling():
    batch = pack([FIRST, SECOND], [0, 1], context=1, num_tokens=8)
    assert batch.cu_seqlens.tolist() == [0, 5, 8]
    assert batch.sequence_T.tolist() == [0] * 5 + [1] * 3


@pytest.mark.parametrize(("context", "num_tokens"), [(1, 1), (1, 5), (2, 4), (2, 8)])
def test_an_empty_micro_batch_is_one_sequence_of_filling(context, num_tokens):
    batch = pack([], [], context=context, num_tokens=num_tokens)
    assert fields(batch) == {
        "token_ids_T": [0] * num_tokens,
        "targets_T": [0] * num_tokens,
        "position_T": list(range(num_tokens)),
        "sampled_T": [False] * num_tokens,
        "mask_T": [False] * num_tokens,
        "advantage_T": [0.0] * num_tokens,
        "weight_T": [0.0] * num_tokens,
        "reward_T": [0.0] * num_tokens,
        "phi_T": [1.0] * num_tokens,
        "engine_logp_T": [0.0] * num_tokens,
        "stale_T": [False] * num_tokens,
        "sequence_T": [X] * num_tokens,
        "cu_seqlens": [0, num_tokens],
    }
    assert batch.max_seqlen == num_tokens


def test_dtypes():
    batch = pack([FIRST], [0], context=1, num_tokens=5)
    assert {name: value.dtype for name, value in vars(batch).items() if value is not None} == {
        "token_ids_T": torch.int64,
        "targets_T": torch.int64,
        "position_T": torch.int64,
        "sampled_T": torch.bool,
        "mask_T": torch.bool,
        "advantage_T": torch.float32,
        "weight_T": torch.float32,
        "reward_T": torch.float32,
        "phi_T": torch.float32,
        "engine_logp_T": torch.float32,
        "stale_T": torch.bool,
        "sequence_T": torch.int64,
        "cu_seqlens": torch.int32,
    }


def test_what_is_left_out_of_the_loss_is_packed_all_the_same():
    """It is scored. Only the mask excludes it."""
    whole, without = (fields(pack([FIRST, last], [0, 1], context=1, num_tokens=9)) for last in (SECOND, LEFT_OUT))
    assert without.pop("mask_T") == [t in (1, 2, 3) for t in range(9)]
    assert whole.pop("mask_T") == [t in (1, 2, 3, 5, 6) for t in range(9)]
    assert without == whole


@pytest.mark.parametrize(
    ("middle", "high"),
    [(0.0, "FSX"), (0.25, "FS"), (0.5, "F"), (1.0, "F"), (1.5, "")],  # F and S earned 1 and 0.25, filling X nothing
)
def test_tokens_by_reward(middle, high):
    batch = pack([FIRST, SECOND], [0, 1], context=1, num_tokens=10)
    masks = batch.by_reward(middle)
    assert masks["high_reward"].tolist() == [owner in high for owner in "FFFFFSSSXX"]
    assert torch.equal(masks["low_reward"], ~masks["high_reward"])


def test_only_some_tokens():
    """The loss counts tokens that are chosen and were in the mask. Other fields and the first batch stay the same."""
    batch = pack([FIRST, SECOND], [0, 1], context=1, num_tokens=10)
    before, chosen = fields(batch), batch.only(torch.arange(10) >= 3)
    assert chosen.mask_T.tolist() == [t in (3, 5, 6) for t in range(10)]
    assert fields(chosen) | {"mask_T": before["mask_T"]} == before == fields(batch)


@pytest.mark.parametrize(("sequences", "num_tokens"), [([FIRST, SECOND], 7), ([], 0)])
def test_too_few_places(sequences, num_tokens):
    with pytest.raises(AssertionError, match=f"tokens do not fit {num_tokens}"):
        pack(sequences, range(len(sequences)), context=1, num_tokens=num_tokens)


def test_moving_keeps_what_is_there():
    batch = pack([FIRST], [0], context=1, num_tokens=6)
    moved = batch.to(torch.device("cpu"))
    assert fields(moved) == fields(batch) and moved.old_logp_T is None
    assert batch.to(torch.device("meta")).cu_seqlens.device.type == "meta"


# --- shared prompts ---

PROMPT = [5, 6, 7]


def completion(*tokens, prompt=PROMPT, reward=1.0):
    return TrainingSequence(
        token_ids=np.array([*prompt, *tokens], np.int32),
        prompt_length=len(prompt),
        engine_logprobs=-np.array(tokens, np.float32),
        advantage=2.0 * reward,
        phi=0.5,
        reward=reward,
    )


def test_a_shared_prompt_by_hand():
    """The prompt comes first, without its last token, which begins each completion. Another prompt stays whole."""
    others = completion(8, 9), completion(10, reward=0.0), completion(12, prompt=[11])
    batch = pack(others, [4, 2, 0], context=1, num_tokens=10, share_prompts=True)
    found = fields(batch)
    assert (
        found
        | {
            "token_ids_T": [5, 6, 7, 8, 9, 7, 10, 11, 12, 0],
            "targets_T": [0, 0, 8, 9, 0, 10, 0, 12, 0, 0],
            "position_T": [0, 1, 2, 3, 4, 2, 3, 0, 1, 0],
            "mask_T": [t in (2, 3, 5, 7) for t in range(10)],
            "engine_logp_T": [0, 0, -8, -9, 0, -10, 0, -12, 0, 0],
            "advantage_T": [0, 0, 2, 2, 2, 0, 0, 2, 2, 0],
            "reward_T": [0, 0, 1, 1, 1, 0, 0, 1, 1, 0],
            "phi_T": [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1],
            "sequence_T": [X, X, 4, 4, 4, 2, 2, 0, 0, X],
            "cu_seqlens": [0, 2, 5, 7, 9, 10],
            "prefix_S": [-1, 0, 0, -1, -1],
        }
        == found
    )
    assert packed_length(others, context=1, share_prompts=True) == 9
    assert packed_length(others, context=1, share_prompts=False) == 11


def test_a_prompt_of_one_token_is_not_shared():
    same = completion(8, prompt=[5]), completion(9, prompt=[5])
    batch = pack(same, [0, 1], context=1, num_tokens=4, share_prompts=True)
    assert batch.token_ids_T.tolist() == [5, 8, 5, 9]
    assert batch.prefix_S.tolist() == [-1, -1]


def test_families_by_hand():
    """Lengths are 5, 4, 4, 2 and 4. Sharing two prompt tokens, the first two take 5 + 2 = 7; a third would make 9."""
    rollout = completion(8, 9), completion(10), completion(11), completion(12, prompt=[11]), completion(13)
    assert families(rollout, most_tokens=8) == [[0, 1], [2], [3], [4]]  # not those that are no neighbours
    assert families(rollout, most_tokens=9) == [[0, 1, 2], [3], [4]]
    assert families(rollout, most_tokens=1) == [[0], [1], [2], [3], [4]]
    assert families([], most_tokens=9) == []


# --- context parallelism ---


def test_zigzag_by_hand():
    """Sequences of 8, 4 and 4 on 2 ranks have chunks of 2, 1 and 1. Rank 0 has the outer ones, rank 1 the inner."""
    chunks = context_chunks(torch.tensor([0, 8, 12, 16], dtype=torch.int32), 2)
    assert chunks.tolist() == [[0, 1, 6, 7, 8, 11, 12, 15], [2, 3, 4, 5, 9, 10, 13, 14]]
    assert chunks.dtype == torch.int64


def test_zigzag_on_three_ranks():
    chunks = context_chunks(torch.tensor([0, 6, 18], dtype=torch.int32), 3)
    assert chunks.tolist() == [[0, 5, 6, 7, 16, 17], [1, 4, 8, 9, 14, 15], [2, 3, 10, 11, 12, 13]]


@pytest.mark.parametrize("context", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_on_one_rank(context, seed):
    rng = random.Random(seed)
    lengths = [aligned(rng.randint(1, 40), context) for _ in range(rng.randint(1, 9))]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    chunks = context_chunks(cu_seqlens, context)
    assert chunks.shape == (context, sum(lengths) // context)
    assert sorted(chunks.flatten().tolist()) == list(range(sum(lengths)))
    keys = torch.cat([torch.arange(1, length + 1) for length in lengths])  # that each token attends to
    assert len(set(keys[chunks].sum(1).tolist())) == 1


def test_split_by_hand():
    batch = pack([FIRST, SECOND], [0, 1], context=2, num_tokens=16)
    parts = [fields(split_context(batch, rank=rank, context=2)) for rank in range(2)]
    assert [part["token_ids_T"] for part in parts] == [[5, 6, 0, 0, 10, 0, 0, 0], [7, 8, 9, 0, 11, 12, 0, 0]]
    assert [part["targets_T"] for part in parts] == [[6, 7, 0, 0, 11, 0, 0, 0], [8, 9, 0, 0, 12, 0, 0, 0]]
    assert [part["position_T"] for part in parts] == [[0, 1, 6, 7, 0, 3, 0, 3], [2, 3, 4, 5, 1, 2, 1, 2]]
    assert [part["engine_logp_T"] for part in parts] == [
        [0.0, -0.5, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0],
        [-0.25, -0.125, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0],
    ]
    assert [part["cu_seqlens"] for part in parts] == [[0, 8, 12, 16]] * 2  # of the whole


@pytest.mark.parametrize("context", [2, 4])
def test_split_takes_every_per_token_array(context):
    whole = pack([FIRST, SECOND, FIRST], [0, 1, 2], context=context, num_tokens=48)
    whole = replace(whole, old_logp_T=torch.arange(48.0), ref_logp_T=-torch.arange(48.0))
    chunks = context_chunks(whole.cu_seqlens, context)
    parts = [split_context(whole, rank=rank, context=context) for rank in range(context)]
    for name, value in vars(whole).items():
        if name.endswith("_T"):
            back = torch.empty_like(value)
            for owned, part in zip(chunks, parts, strict=True):
                back[owned] = getattr(part, name)
            assert torch.equal(back, value), name


def test_one_rank_has_it_all():
    batch = pack([FIRST], [0], context=1, num_tokens=5)
    assert split_context(batch, rank=0, context=1) is batch
