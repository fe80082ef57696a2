"""Choose the checkpoint to resume from: the newest one with undamaged files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch.distributed as dist

from megatron_rapo.checkpoints.folders import MODEL_FILES, CheckpointError, earlier_checkpoints, problem_of_pointer
from megatron_rapo.checkpoints.manifest import Manifest
from megatron_rapo.models import ModelShape, read_shape


def sound_checkpoint(latest: Path) -> tuple[Path, list[str]]:
    """Return `latest`, or the newest earlier checkpoint without missing or damaged files, and warnings.

    Warnings describe a wrong `latest` file and each damaged checkpoint. Collective over the world, which shares the
    reading. Raises CheckpointError if every checkpoint is damaged.
    """
    pointer = problem_of_pointer(latest.parent)
    problems = [pointer] if pointer else []
    for folder in [latest, *earlier_checkpoints(latest)]:
        wrong = _what_is_wrong(folder)
        if wrong is None:
            return folder, problems
        problems.append(wrong)
    raise CheckpointError(f"no undamaged checkpoint to resume from: {' '.join(problems)}")


def check_same_model(checkpoint: Path, shape: ModelShape) -> None:
    """Refuse a checkpoint of a model with another shape. Raises CheckpointError."""
    saved = dataclasses.asdict(read_shape(checkpoint / MODEL_FILES))
    for field, value in dataclasses.asdict(shape).items():
        if value != saved[field]:
            raise CheckpointError(
                f"{checkpoint}: its model has {field}={saved[field]}, but that of model.path has {value}; "
                "set model.path to the model that the run began with."
            )


def _what_is_wrong(folder: Path) -> str | None:
    """Return the first problem that any rank finds in its share of the files. Collective over the world."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, _wrong_in_share(folder))
    return next((wrong for wrong in found if wrong), None)


def _wrong_in_share(folder: Path) -> str | None:
    try:
        manifest = Manifest(folder)
        manifest.verify(manifest.files[dist.get_rank() :: dist.get_world_size()])
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{folder}: cannot be read ({error}); check the disk, or take another checkpoint."
    return None
