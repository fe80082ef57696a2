"""Which checkpoint a run goes on from: the newest that is what was written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch.distributed as dist

from megatron_rapo.checkpoints.folders import MODEL_FILES, CheckpointError, earlier_checkpoints, problem_of_pointer
from megatron_rapo.checkpoints.manifest import Manifest
from megatron_rapo.models import ModelShape, read_shape


def sound_checkpoint(latest: Path) -> tuple[Path, list[str]]:
    """`latest` or, where a file of it is missing or damaged, the newest sound one before it; what is wrong with others.

    A pointer that does not name it is among what is wrong.

    Collective over the world, which shares the reading. Raises CheckpointError where none is sound.
    """
    pointer = problem_of_pointer(latest.parent)
    problems = [pointer] if pointer else []
    for folder in [latest, *earlier_checkpoints(latest)]:
        wrong = _what_is_wrong(folder)
        if wrong is None:
            return folder, problems
        problems.append(wrong)
    raise CheckpointError(f"no checkpoint to go on from is sound: {' '.join(problems)}")


def check_same_model(checkpoint: Path, shape: ModelShape) -> None:
    """Refuse a checkpoint of a model that is not of this shape. Raises CheckpointError."""
    saved = dataclasses.asdict(read_shape(checkpoint / MODEL_FILES))
    for field, value in dataclasses.asdict(shape).items():
        if value != saved[field]:
            raise CheckpointError(
                f"{checkpoint}: is of a model with {field}={saved[field]}, and that of model.path has {value}; set "
                "model.path to the folder that the run began with."
            )


def _what_is_wrong(folder: Path) -> str | None:
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
        return f"{folder}: cannot be read ({error}); see to the disk, or take another checkpoint."
    return None
