"""Saving and loading a run's state through Megatron's dist_checkpointing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)

from megatron_rapo.checkpoints import (
    MODEL_FILES,
    CheckpointError,
    checkpoint_folder,
    point_to,
    prune,
    save_settings,
)
from megatron_rapo.checkpoints.manifest import Range, digests, whole, write_manifest
from megatron_rapo.checkpoints.tensors import chunk_places
from megatron_rapo.hf.weights import copy_model_files
from megatron_rapo.mcore import checkpoint_writer
from megatron_rapo.mcore.optimizer import allocate_state
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.writing import put_in_place


def save_checkpoint(root: Path, step: int, policy: Policy, state: dict[str, Any]) -> Path:
    """Write weights, optimizer, schedule and `state` (the trainer's own, of plain types). Collective.

    Returns the checkpoint's folder. The reference is not in it: it is read from model.path again.
    """
    folder = checkpoint_folder(root, step)
    partial = folder.with_suffix(".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    checkpoint_writer.install()
    with policy.training_state.in_place():
        content = {**_sharded(policy, loading=False), "format": policy.checkpoint_format, "trainer": state}
        dist_checkpointing.save(content, str(partial), get_default_save_sharded_strategy("torch_dist"))
    dist.barrier()
    tensors = _digests_of_tensors(partial)
    if dist.get_rank() == 0:
        save_settings(partial, policy.config)
        copy_model_files(policy.config.model.path, partial / MODEL_FILES)
        others = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()]
        write_manifest(partial, tensors | {name: whole(partial / name) for name in others if name not in tensors})
        put_in_place(partial, folder)
        point_to(folder)
        settings = policy.config.checkpoint
        prune(folder, keep_last=settings.keep_last, keep_every=settings.keep_every)
    dist.barrier()
    return folder


def _digests_of_tensors(folder: Path) -> dict[str, list[Range]]:
    """Of all files of chunks, on every rank; each rank reads its share of them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    places = sorted(chunk_places(folder).items())
    mine = {file: digests(folder / file, of_file) for file, of_file in places[rank::world]}
    everyone: list[dict[str, list[Range]]] = [{} for _ in range(world)]
    dist.all_gather_object(everyone, mine)
    return {file: ranges for part in everyone for file, ranges in part.items()}


def load_checkpoint(folder: Path, policy: Policy) -> dict[str, Any]:
    """Restore `policy` in place (under any parallel layout) and return the trainer's own state. Collective.

    Raises CheckpointError where number format or kind of optimizer are not those of the checkpoint.
    """
    saved = dist_checkpointing.load_common_state_dict(str(folder))["format"]
    for setting, present in policy.checkpoint_format.items():
        if saved[setting] != present:
            raise CheckpointError(
                f"{setting}={present}: {folder} was written with {saved[setting]}, and Megatron does not convert the "
                f"optimizer's state; resume with {setting}={saved[setting]}."
            )
    with policy.training_state.in_place():
        allocate_state(policy.optimizer)
        content = dist_checkpointing.load(
            _sharded(policy, loading=True), str(folder), get_default_load_sharded_strategy(str(folder))
        )
        for i, chunk in enumerate(policy.chunks):
            chunk.load_state_dict(content[f"model{i}"])
        policy.optimizer.load_state_dict(content["optimizer"])
    policy.scheduler.load_state_dict(content["scheduler"])
    trainer_state: dict[str, Any] = content["trainer"]
    return trainer_state


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
