"""Compare log-probabilities of a scored rollout before training: engine and trainer, policy and reference.

T tokens of a micro-batch. Every function is collective over the world and returns the same result on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.mcore.forward_backward import gather_over_data, total
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.scoring.packing import REWARD_SPLITS, PackedBatch

QUANTILES = {"p01": 0.01, "p50": 0.50, "p99": 0.99}
_WIDTH, _BINS_A_SIDE = 0.01, 2000  # of the histogram: nats, and bins below and above 0


def logprob_gap(batches: Sequence[PackedBatch], parallel: Parallel) -> dict[str, float]:
    """Return mean and largest |engine - trainer| log-probability over the sampled tokens of scored `batches`, in nats.

    Tokens sampled from earlier weights (stale tokens) are averaged separately, where there are any: their gap
    shows how far the policy has moved since, not an error of the engine.
    """
    mine = [
        _gap(b.mask_T & ~b.stale_T, b.old_logp_T, b.engine_logp_T)
        | _gap(b.mask_T & b.stale_T, b.old_logp_T, b.engine_logp_T, "stale_")
        for b in batches
        if b.old_logp_T is not None
    ]
    items = gather_over_data(mine, parallel)
    mean, largest = _mean_and_max(items)
    gap = {"rollout/logprob_gap_mean": mean, "rollout/logprob_gap_max": largest}
    if total(items, "stale_tokens"):
        gap["rollout/stale_logprob_gap"], _ = _mean_and_max(items, "stale_")
    return gap


def gap_parts(
    batches: Sequence[PackedBatch], plain: Sequence[PackedBatch], rounded: Sequence[PackedBatch], parallel: Parallel
) -> dict[str, float]:
    """Split the log-probability gap of scored `batches` by cause, in nats, mean over the sampled tokens.

    `plain` and `rounded` are the same micro-batches scored without FP8: `plain` with the trainer's own weights,
    `rounded` with those of an engine in FP8.
    """
    scored = [same for same in zip(batches, plain, rounded, strict=True) if same[0].old_logp_T is not None]
    parts = {
        "trainer_fp8": [_gap(b.mask_T, b.old_logp_T, p.old_logp_T) for b, p, _ in scored],
        "engine_fp8": [_gap(b.mask_T, r.old_logp_T, p.old_logp_T) for b, p, r in scored],
        "kernels": [_gap(b.mask_T, b.engine_logp_T, r.old_logp_T) for b, _, r in scored],
    }
    return {
        f"reshard/parity_{name}": _mean_and_max(gather_over_data(gaps, parallel))[0] for name, gaps in parts.items()
    }


def _gap(chosen_T: Tensor, a_T: Any, b_T: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return sum and maximum of |a - b| over the chosen tokens of this rank, and the number of tokens."""
    gap_T = (a_T - b_T).abs().masked_fill(~chosen_T, 0.0)
    return {f"{prefix}sum": gap_T.sum(), f"{prefix}max": gap_T.max(), f"{prefix}tokens": chosen_T.sum()}


def _mean_and_max(items: Sequence[dict[str, float]], prefix: str = "") -> tuple[float, float]:
    """Return mean and maximum over what all ranks reported."""
    tokens = max(1, total(items, f"{prefix}tokens"))
    return total(items, f"{prefix}sum") / tokens, max(item[f"{prefix}max"] for item in items)


def log_rho_quantiles(batches: Sequence[PackedBatch], parallel: Parallel, *, middle_reward: float) -> dict[str, float]:
    """Return quantiles of log rho = log pihat_ref - log pi over the sampled tokens, nats: all, and split by reward.

    They come from a histogram summed over all ranks: +-20 nats, bins of 0.01. Values outside count in the end bins.
    """
    names = ("", *(f"/{name}" for name in REWARD_SPLITS))
    counts = {name: torch.zeros(2 * _BINS_A_SIDE, dtype=torch.int64) for name in names}
    for batch in batches:
        if batch.old_logp_T is None or batch.ref_logp_T is None or parallel.tensor_group.rank():
            continue
        log_rho_T = batch.ref_logp_T - batch.old_logp_T
        splits = (batch.mask_T, *batch.by_reward(middle_reward).values())
        for name, split_T in zip(names, splits, strict=True):
            counts[name] += _histogram(log_rho_T[batch.mask_T & split_T]).cpu()
    everyone = torch.stack(list(counts.values())).to(parallel.device)
    dist.all_reduce(everyone)
    return {
        f"estimator/log_rho_{quantile}{name}": _quantile(histogram, share)
        for name, histogram in zip(counts, everyone.cpu(), strict=True)
        if histogram.sum()
        for quantile, share in QUANTILES.items()
    }


def _histogram(values: Tensor) -> Tensor:
    bins = (values / _WIDTH).floor().long().clamp(-_BINS_A_SIDE, _BINS_A_SIDE - 1) + _BINS_A_SIDE
    return torch.bincount(bins, minlength=2 * _BINS_A_SIDE)


def _quantile(histogram: Tensor, share: float) -> float:
    """Return the value below which `share` of the counts lie, linear within a bin."""
    below = histogram.cumsum(0)
    wanted = share * float(below[-1])
    bin_ = int(torch.searchsorted(below, wanted))
    before = float(below[bin_ - 1]) if bin_ else 0.0
    return (bin_ - _BINS_A_SIDE + (wanted - before) / float(histogram[bin_])) * _WIDTH
