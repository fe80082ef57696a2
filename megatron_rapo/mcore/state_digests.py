"""Compute digests of a policy's weights and optimizer state that do not depend on the parallel layout.

A checkpoint keeps them. After a restore, under any layout, the digests must be equal. So a layout whose state Megatron
saves or loads wrongly is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.mcore import torch_adam
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import OUTPUT, hf_shapes, trainer_shards
from megatron_rapo.reshard.partial_digest import part_digest, parts

WEIGHTS, MASTER, ROUNDED = "weights", "master weights", "master weights, rounded"
STATE = (WEIGHTS, MASTER, "exp_avg", "exp_avg_sq")
"""What a checkpoint holds of every parameter. ROUNDED is the master weights in the dtype of the weights."""

Digests = dict[str, dict[str, tuple[int, int]]]
"""By kind and Hugging Face name: the sum modulo 2^64 over all numbers, and how many numbers there are."""


def digests(policy: Policy, kinds: Sequence[str] = STATE, *, every_copy: bool = False) -> Digests:
    """Return digests over all processes, of each number once (what is saved) or of `every_copy` (what is in memory).

    Collective over the world. Call within `policy.training_state.in_place()`.
    """
    names = list(hf_shapes(policy.shape))
    tensor_group = policy.parallel.tensor_group
    shards = trainer_shards(policy.shape, tensor=tensor_group.size(), rank=tensor_group.rank(), norms=policy.norms)
    totals = torch.zeros(2, len(kinds), len(names), dtype=torch.int64, device=policy.parallel.device)
    for held in _held(policy, kinds):
        shard = shards[held.parameter]
        if not every_copy and not _is_saved(policy, held, split=shard.split):
            continue
        for part in parts(held.flat, held.start, shard):
            place, index = kinds.index(held.kind), names.index(part.name)
            totals[0, place, index] += part_digest(part, index)
            totals[1, place, index] += part.values_RC.numel()
    dist.all_reduce(totals)
    sums, counts = totals.tolist()
    return {kind: {name: (sums[i][j], counts[i][j]) for j, name in enumerate(names)} for i, kind in enumerate(kinds)}


def check_restored(folder: Path, policy: Policy, saved: Digests) -> None:
    """Raise CheckpointError if the policy differs from what was saved in `folder`. Collective."""
    found = digests(policy, every_copy=True)
    for kind in STATE:
        if wrong := _different(policy.shape, found[kind], saved[kind]):
            raise CheckpointError(
                f"{folder}: {kind} of {len(wrong)} of {len(found[kind])} tensors ({wrong[0]} first) are not what was "
                "saved, though its files are sound: this layout saves or restores them wrongly. Resume from an "
                "earlier checkpoint under another layout (section parallel), and report this one."
            )


def check_agreement(folder: Path, policy: Policy, weights: Mapping[str, tuple[int, int]]) -> None:
    """Raise CheckpointError if the master weights differ from `weights`. For checkpoints without digests.

    Megatron-core damaged such checkpoints before mcore/bucket_padding.py existed. Collective.
    """
    rounded = digests(policy, [ROUNDED], every_copy=True)[ROUNDED]
    if wrong := _different(policy.shape, rounded, weights):
        raise CheckpointError(
            f"{folder}: the optimizer's weights of {len(wrong)} of {len(rounded)} tensors ({wrong[0]} first) are not "
            "the model's: its optimizer state was damaged when it was saved (tied embeddings with pipeline > 1 and "
            "optimizer.distributed, megatron-core 0.16.1). Convert the model in it to Hugging Face, check that with "
            "`megatron-rapo evaluate`, and start a new run from it."
        )


def _different(shape: ModelShape, a: Mapping[str, tuple[int, int]], b: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the names of tensors whose copies differ, within `a`, within `b` or between them."""
    wrong = []
    for name, size in hf_shapes(shape).items():
        (sum_a, count_a), (sum_b, count_b), numel = a[name], b.get(name, (0, 0)), math.prod(size)
        whole = count_a and count_b and count_a % numel == count_b % numel == 0
        if not whole or (sum_a * (count_b // numel) - sum_b * (count_a // numel)) % 2**64:
            wrong.append(name)
    return wrong


class _Held(NamedTuple):
    """A part of a parameter that this process holds."""

    kind: str
    parameter: str
    start: int  # first number of `flat` in the flattened parameter
    flat: Tensor
    distributed: bool  # split over data-parallel ranks


def _held(policy: Policy, kinds: Sequence[str]) -> Iterator[_Held]:
    if WEIGHTS in kinds:
        for name, weight in policy.parameters.items():
            yield _Held(WEIGHTS, name, 0, weight.detach().flatten(), False)
    names = {weight: name for name, weight in policy.parameters.items()}
    for part in torch_adam.parts(policy.optimizer):
        if part.optimizer is None:  # a rank without parameters
            continue
        distributed = isinstance(part, DistributedOptimizer)
        for weight in part.model_param_gbuf_map if distributed else names:
            start, tensors = _of_distributed(part, weight) if distributed else (0, _of_whole(part, weight))
            master = tensors[MASTER].detach().flatten()
            for kind in kinds:
                if kind == ROUNDED:
                    yield _Held(kind, names[weight], start, master.to(weight.dtype), distributed)
                elif kind != WEIGHTS:  # a fresh Adam has no state yet; it starts with zeros
                    flat = tensors[kind].detach().flatten() if kind in tensors else torch.zeros_like(master)
                    yield _Held(kind, names[weight], start, flat, distributed)


def _of_distributed(part: DistributedOptimizer, weight: Tensor) -> tuple[int, dict[str, Tensor]]:
    tensors = part._get_main_param_and_optimizer_states(weight)
    return part._get_model_param_range_map(weight)["param"].start, {**tensors, MASTER: tensors["param"]}


def _of_whole(part: Any, weight: Tensor) -> dict[str, Tensor]:
    master = getattr(weight, "main_param", weight)  # in float32 the weights are the master weights
    return {**part.optimizer.state[master], MASTER: master}


def _is_saved(policy: Policy, held: _Held, *, split: bool) -> bool:
    """Return whether Megatron saves this part: of equal copies it saves only one."""
    parallel = policy.parallel
    first_replica = held.distributed or parallel.data_context_group.rank() == 0
    copy_of_embedding = policy.shape.tied and held.parameter == OUTPUT
    return first_replica and (split or parallel.tensor_group.rank() == 0) and not copy_of_embedding
