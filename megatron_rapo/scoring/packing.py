"""Pack sequences into micro-batches without padding between them (thd), equally many on every data-parallel rank.

T tokens of a micro-batch, S sequences in it. Position t predicts the *next* token, targets_T[t]. So entry t of every
per-token array is about that token.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_rapo.types import TrainingSequence

REWARD_SPLITS = ("low_reward", "high_reward")
"""Names of the two halves of metrics: sequences below the middle of the reward's range, and the others."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch of one data-parallel rank. After `split_context`: the part of one context-parallel rank."""

    token_ids_T: Tensor  # int64
    targets_T: Tensor  # int64: the next token of the same sequence; 0 at its end
    position_T: Tensor  # int64: the token's place in its sequence
    sampled_T: Tensor  # bool: targets_T is a sampled token. Only these are scored
    mask_T: Tensor  # bool: the sampled tokens that the loss counts
    advantage_T: Tensor  # float32
    weight_T: Tensor  # float32: weight in the objective; 1 on average over the optimizer step
    reward_T: Tensor  # float32: reward of the token's sequence
    phi_T: Tensor  # float32: exponent of the reference
    engine_logp_T: Tensor  # float32: the engine's log-probability of targets_T, nats; 0 if not sampled
    stale_T: Tensor  # bool: targets_T was sampled from weights older than those at the start of the step
    sequence_T: Tensor  # int64: index of the token's sequence in the optimizer step; -1 for filling and shared prompts
    cu_seqlens: Tensor  # [S + 1] int32: borders of the sequences in the *unsplit* micro-batch
    prefix_S: Tensor | None = None  # int64: index of the shared prompt that it continues, or -1; None if none is shared
    old_logp_T: Tensor | None = None  # float32: the policy's, from the scoring pass
    ref_logp_T: Tensor | None = None  # float32: the reweighted reference's, from the scoring pass
    ref_hidden_RD: Tensor | None = None  # this tensor rank's share of the reference's hidden states of sampled tokens

    @property
    def max_seqlen(self) -> int:
        """Return the length of the longest sequence of the unsplit micro-batch, in tokens."""
        return int((self.cu_seqlens[1:] - self.cu_seqlens[:-1]).max())

    @property
    def scored_N(self) -> Tensor:
        """Return positions of the N sampled tokens, int64. Without any, return position 0 so that a pass has one."""
        chosen_N = self.sampled_T.nonzero()[:, 0]
        return chosen_N if len(chosen_N) else chosen_N.new_zeros(1)

    def by_reward(self, middle: float) -> dict[str, Tensor]:
        """Return masks [T] by REWARD_SPLITS: tokens of sequences with a reward below `middle`, and the others."""
        high_T = self.reward_T >= middle
        return dict(zip(REWARD_SPLITS, (~high_T, high_T), strict=True))

    def only(self, chosen_T: Tensor) -> PackedBatch:
        """Return the same batch, but let the loss count only the tokens in `chosen_T`."""
        return replace(self, mask_T=self.mask_T & chosen_T)

    def to(self, device: torch.device) -> PackedBatch:
        """Return the same batch on `device`."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})


def assign(
    lengths: Sequence[int], costs: Sequence[float], *, num_ranks: int, max_tokens: int, multiple_of: int = 1
) -> list[list[list[int]]]:
    """Assign sequences: indices by [rank][micro-batch]. Every rank gets the same number of micro-batches.

    Ranks wait for each other once in a step. So the costs are first balanced over ranks, then over the micro-batches of
    each rank. A micro-batch holds at most `max_tokens`. Their number is the smallest one found that has room, and a
    multiple of `multiple_of` (interleaved pipeline schedules need it). Deterministic. Sequences of equal length are
    neighbours. Raises ValueError if a sequence is longer than max_tokens.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"sequence of {max(lengths)} tokens: longer than a micro-batch of {max_tokens} tokens.")
    per_rank = max(1, -(-sum(lengths) // (num_ranks * max_tokens)))
    while True:
        per_rank = -(-per_rank // multiple_of) * multiple_of
        ranks = _share_out(range(len(lengths)), lengths, costs, num_ranks, per_rank * max_tokens)
        found = [_share_out(mine, lengths, costs, per_rank, max_tokens) for mine in ranks or ()]
        if found and all(found):
            return found
        per_rank += 1


def _share_out(
    indices: Sequence[int], lengths: Sequence[int], costs: Sequence[float], num_shares: int, max_tokens: int
) -> list[list[int]]:
    """Share out indices by LPT: most expensive first, to the cheapest share with room. Return [] if none has room."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    cheapest = [(0.0, share, max_tokens) for share in range(num_shares)]  # cost, share, free tokens
    full: list[tuple[int, tuple[float, int, int]]] = []  # shares without room; the one with most free tokens first
    for index in sorted(indices, key=lambda i: (-costs[i], i)):
        while full and -full[0][0] >= lengths[index]:
            heapq.heappush(cheapest, heapq.heappop(full)[1])
        while cheapest and cheapest[0][2] < lengths[index]:
            without_room = heapq.heappop(cheapest)
            heapq.heappush(full, (-without_room[2], without_room))
        if not cheapest:
            return []
        cost, share, free = cheapest[0]
        shares[share].append(index)
        heapq.heapreplace(cheapest, (cost + costs[index], share, free - lengths[index]))
    return shares


def aligned(length: int, context: int) -> int:
    """Return the packed length of a sequence. Context parallelism cuts each into 2 * context equal chunks."""
    chunk = 2 * context if context > 1 else 1
    return -(-length // chunk) * chunk


def families(sequences: Sequence[TrainingSequence], *, most_tokens: int) -> list[list[int]]:
    """Group indices of neighbours that share one copy of their prompt.

    A group of several has at most `most_tokens`, so that ranks and micro-batches can still be balanced.
    """
    found: list[list[int]] = []
    tokens = 0
    for index, sequence in enumerate(sequences):
        added = len(sequence.token_ids) - sequence.prompt_length + 1  # _parts copies the prompt's last token to each
        if index and _prompt(sequences[index - 1]) == _prompt(sequence) and tokens + added <= most_tokens:
            found[-1].append(index)
            tokens += added
        else:
            found.append([index])
            tokens = len(sequence.token_ids)
    return found


class _Part(NamedTuple):
    """Tokens of a sequence from `first` up to, not including, `last`."""

    sequence: TrainingSequence
    place: int  # index of the sequence in the optimizer step; -1 for a shared prompt
    first: int
    last: int
    prefix: int  # index of the part of the micro-batch that this one continues; -1 for none


def _parts(sequences: Sequence[TrainingSequence], indices: Sequence[int], *, share_prompts: bool) -> list[_Part]:
    """List the parts in packing order: sequences, or each shared prompt followed by its completions.

    The last token of a prompt predicts a different token in each completion, so each completion has its own copy.
    """
    if not share_prompts:
        return [_Part(s, i, 0, len(s.token_ids), -1) for s, i in zip(sequences, indices, strict=True)]
    found: list[_Part] = []
    for _, group in groupby(zip(sequences, indices, strict=True), key=lambda pair: _prompt(pair[0])):
        members, first, prefix = list(group), 0, -1
        prompt_length = members[0][0].prompt_length
        if len(members) > 1 and prompt_length > 1:
            first, prefix = prompt_length - 1, len(found)
            found.append(_Part(members[0][0], -1, 0, first, -1))
        found += [_Part(s, i, first, len(s.token_ids), prefix) for s, i in members]
    return found


def _prompt(sequence: TrainingSequence) -> bytes:
    return sequence.token_ids[: sequence.prompt_length].tobytes()


def packed_length(sequences: Sequence[TrainingSequence], *, context: int, share_prompts: bool) -> int:
    """Return the minimum number of tokens that `pack` needs for `sequences`."""
    parts = _parts(sequences, range(len(sequences)), share_prompts=share_prompts)
    return sum(aligned(part.last - part.first, context) for part in parts)


def pack(
    sequences: Sequence[TrainingSequence],
    indices: Sequence[int],
    *,
    context: int,
    num_tokens: int,
    share_prompts: bool = False,
) -> PackedBatch:
    """Pack `sequences` one after the other, each aligned, and fill up to `num_tokens` with meaningless tokens.

    The filling is one more sequence. `indices` are the sequences' places in the optimizer step. `num_tokens` is at
    least 1 and at least `packed_length`, and a multiple of 2 * context if context > 1. With `share_prompts`, neighbours
    with the same prompt share one copy of it: a sequence before them, to which `prefix_S` points.
    """
    parts = _parts(sequences, indices, share_prompts=share_prompts)
    lengths = [aligned(part.last - part.first, context) for part in parts]
    filling = num_tokens - sum(lengths)
    assert filling >= 0 and num_tokens > 0, f"{sum(lengths)} tokens do not fit {num_tokens}"
    lengths += [filling] * (filling > 0)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    size = int(cu_seqlens[-1])
    token_ids, targets = np.zeros(size, np.int64), np.zeros(size, np.int64)
    sampled, mask, owner = np.zeros(size, np.bool_), np.zeros(size, np.bool_), np.full(size, -1, np.int64)
    advantage, weight, reward, engine = (np.zeros(size, np.float32) for _ in range(4))
    phi, stale = np.ones(size, np.float32), np.zeros(size, np.bool_)
    position = np.arange(size) - np.repeat(cu_seqlens[:-1], lengths)
    for (sequence, place, first, last, _), start, end in zip(parts, cu_seqlens, cu_seqlens[1:], strict=False):
        stop = start + last - first
        token_ids[start:stop] = sequence.token_ids[first:last]
        position[start:end] += first
        if place < 0:
            continue
        targets[start : stop - 1] = sequence.token_ids[first + 1 :]
        owner[start:stop] = place
        completion = slice(stop - 1 - len(sequence.engine_logprobs), stop - 1)
        sampled[completion] = True
        mask[completion] = sequence.in_loss
        engine[completion] = sequence.engine_logprobs
        stale[completion.start : completion.start + sequence.num_stale] = True
        advantage[start:stop] = sequence.advantage
        weight[start:stop] = sequence.weight
        reward[start:stop] = sequence.reward
        phi[start:stop] = sequence.phi
    prefixes = [part.prefix for part in parts] + [-1] * (filling > 0)
    return PackedBatch(
        token_ids_T=torch.from_numpy(token_ids),
        targets_T=torch.from_numpy(targets),
        position_T=torch.from_numpy(position),
        sampled_T=torch.from_numpy(sampled),
        mask_T=torch.from_numpy(mask),
        advantage_T=torch.from_numpy(advantage),
        weight_T=torch.from_numpy(weight),
        reward_T=torch.from_numpy(reward),
        phi_T=torch.from_numpy(phi),
        engine_logp_T=torch.from_numpy(engine),
        stale_T=torch.from_numpy(stale),
        sequence_T=torch.from_numpy(owner),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        prefix_S=torch.tensor(prefixes) if share_prompts else None,
    )


def context_chunks(cu_seqlens: Tensor, context: int) -> Tensor:
    """Return the tokens of the micro-batch that each context-parallel rank owns, [context, T / context] int64.

    Megatron and Transformer Engine cut each sequence into 2 * context chunks. Rank r owns chunks r and
    2 * context - 1 - r, so that causal attention costs all ranks the same.
    """
    borders = cu_seqlens.tolist()
    owned = []
    for rank in range(context):
        pieces = []
        for start, end in pairwise(borders):
            chunk = (end - start) // (2 * context)
            for c in (rank, 2 * context - 1 - rank):
                pieces.append(torch.arange(start + c * chunk, start + (c + 1) * chunk))
        owned.append(torch.cat(pieces))
    return torch.stack(owned)


def split_context(batch: PackedBatch, *, rank: int, context: int) -> PackedBatch:
    """Return the part of `batch` that context-parallel rank `rank` owns. Keep the cu_seqlens of the whole batch."""
    if context == 1:
        return batch
    owned_T = context_chunks(batch.cu_seqlens, context)[rank]
    tensors = {name: value[owned_T] for name, value in vars(batch).items() if name.endswith("_T") and value is not None}
    return replace(batch, **tensors)
