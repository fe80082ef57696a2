"""Collect what Megatron's dist_checkpointing saves of a run, and restore a run from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.checkpoints.restricted_pickle import COMMON, read_common
from megatron_rapo.mcore.optimizer import allocate_state
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.mcore.random_state import random_state, set_random_state
from megatron_rapo.mcore.safe_loading import load_safely
from megatron_rapo.mcore.state_digests import WEIGHTS, check_agreement, check_restored, digests


def content(policy: Policy, trainer: dict[str, Any]) -> dict[str, Any]:
    """Return everything that a checkpoint holds. `trainer` is the trainer's own state.

    The reference is not saved: it is read from model.path again. Call within `policy.training_state.in_place()`.
    """
    return {
        **_sharded(policy, loading=False),
        "random": _random_states(),
        "world_size": dist.get_world_size(),
        "digests": digests(policy),
        "format": policy.checkpoint_format,
        "trainer": trainer,
    }


def load_checkpoint(folder: Path, policy: Policy) -> dict[str, Any]:
    """Restore `policy` in place (under any parallel layout) and return the trainer's own state. Collective.

    Restores the random number generators only on the same number of processes; otherwise leaves them unchanged.
    Raises CheckpointError if the number format or the kind of optimizer differs from the checkpoint's.
    """
    saved = read_common(folder / COMMON)
    for setting, present in policy.checkpoint_format.items():
        if saved["format"][setting] != present:
            raise CheckpointError(
                f"{setting}={present}: {folder} was written with {saved['format'][setting]}, and Megatron does not "
                f"convert the optimizer's state; resume with {setting}={saved['format'][setting]}."
            )
    same_world = saved["world_size"] == dist.get_world_size()
    with policy.training_state.in_place():
        allocate_state(policy.optimizer)
        wanted = _sharded(policy, loading=True) | ({"random": _random_states()} if same_world else {})
        found = load_safely(wanted, folder)
        for i, chunk in enumerate(policy.chunks):
            chunk.load_state_dict(found[f"model{i}"])
        weights = {} if "digests" in saved else digests(policy, [WEIGHTS], every_copy=True)[WEIGHTS]
        policy.optimizer.load_state_dict(found["optimizer"])
        if "digests" in saved:
            check_restored(folder, policy, saved["digests"])
        else:
            check_agreement(folder, policy, weights)
    policy.scheduler.load_state_dict(found["scheduler"])
    if same_world:
        set_random_state(found["random"])
    trainer: dict[str, Any] = found["trainer"]
    return trainer


def _random_states() -> ShardedObject:
    return ShardedObject("random", random_state(), (dist.get_world_size(),), (dist.get_rank(),))


def _sharded(policy: Policy, *, loading: bool) -> dict[str, Any]:
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": True,  # gathered on rank 0's host, not on every device
        "dp_cp_group": policy.parallel.data_context_group,
    }
    models = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(policy.chunks)}
    merged = models["model0"] if len(models) == 1 else models
    return {
        **models,
        "optimizer": policy.optimizer.sharded_state_dict(merged, is_loading=loading, metadata=metadata),
        "scheduler": policy.scheduler.state_dict(),
    }
