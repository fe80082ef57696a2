"""Write the policy as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import save_folder
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.runtime.atomic_write import explained
from megatron_rapo.runtime.distributed import everywhere


def export(policy: Policy, folder: Path) -> None:
    """Write `folder` atomically, in the run's dtype. Collective over the world.

    Raises CheckpointError on every process if the first one cannot write.
    """
    try:
        everywhere(lambda: _export(policy, folder))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the Hugging Face export could not be written: {explained(error, folder)}"
        ) from error


def _export(policy: Policy, folder: Path) -> None:
    config, tensors = policy.config, policy.hf_tensors()
    try:
        if dist.get_rank() == 0:
            save_folder(
                folder, tensors, shapes=hf_shapes(policy.shape), dtype=policy.backend.dtype, like=config.model.path
            )
    finally:
        for _ in tensors:  # the gathers need every rank
            pass
