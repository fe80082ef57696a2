"""Collect log-probabilities of single completions, token by token. Meant for a few that people read.

T tokens of a micro-batch on this context-parallel rank, L tokens of one completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.scoring.packing import PackedBatch
from megatron_rapo.types import TrainingSequence

Place = tuple[int, int]
"""The place of a completion in a rollout: its optimizer step, and its sequence in that step."""
_Part = tuple[Place, np.ndarray, np.ndarray]  # of a completion: indices of some tokens, and their scores [2, n]


class TokenLogProbs(NamedTuple):
    """Log-probabilities of the tokens of one completion, in nats."""

    policy_L: np.ndarray  # float32: the trainer's, before it trains on them
    reference_L: np.ndarray | None  # float32: of pi_ref^phi / Z; None without a reference


def token_log_probs(
    steps: Sequence[Sequence[PackedBatch]],
    chosen: Mapping[Place, TrainingSequence],
    parallel: Parallel,
    *,
    with_reference: bool,
) -> dict[Place, TokenLogProbs]:
    """Return log-probabilities of the `chosen` completions in scored `steps`, on the first process; empty elsewhere.

    Includes completions that the loss excludes. Only the chosen ones are sent. Collective over the world.
    """
    mine = []
    if parallel.is_last_stage and parallel.tensor_group.rank() == 0:
        mine = [part for step, batches in enumerate(steps) for batch in batches for part in _parts(batch, step, chosen)]
    everyone: list[list[_Part]] | None = [[] for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather_object(mine, everyone)
    if everyone is None:
        return {}
    found = {place: np.full((2, len(s.engine_logprobs)), np.nan, np.float32) for place, s in chosen.items()}
    for place, tokens, scores_2 in (part for parts in everyone for part in parts):
        found[place][:, tokens] = scores_2
    return {
        place: TokenLogProbs(policy_L, reference_L if with_reference else None)
        for place, (policy_L, reference_L) in found.items()
    }


def _parts(batch: PackedBatch, step: int, chosen: Mapping[Place, TrainingSequence]) -> Iterator[_Part]:
    """Yield this rank's part of each chosen completion in the micro-batch."""
    assert batch.old_logp_T is not None and batch.ref_logp_T is not None, "the micro-batch was not scored"
    sequence_T, position_T = batch.sequence_T.cpu(), batch.position_T.cpu()
    scores_2T = torch.stack([batch.old_logp_T, batch.ref_logp_T])
    for index in sequence_T.unique().tolist():
        sequence = chosen.get((step, index))
        if sequence is None:
            continue
        token_T = position_T + 1 - sequence.prompt_length  # entry t scores the next token
        mine_T = (sequence_T == index) & (token_T >= 0) & (token_T < len(sequence.engine_logprobs))
        scores_2 = scores_2T[:, mine_T.to(scores_2T.device)].float().cpu().numpy()
        yield (step, index), token_T[mine_T].numpy(), scores_2
