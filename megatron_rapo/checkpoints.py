"""Where a run's checkpoints are. What is in them is written and read by `mcore/checkpoint.py`.

A checkpoint is one folder `step-000042`, written as `step-000042.partial` and renamed when it is whole; `latest`
beside it is a text file with the name of the newest whole one.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = "checkpoints"  # folder of a run's checkpoints within run.folder
_LATEST, _PREFIX = "latest", "step-"


class CheckpointError(ValueError):
    """A checkpoint that is not there or cannot be used."""


def checkpoint_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint of `step` under `root`."""
    return root / f"{_PREFIX}{step:06d}"


def checkpoint_step(folder: Path) -> int:
    """The step after which the checkpoint in `folder` was written."""
    return int(folder.name.removeprefix(_PREFIX))


def latest_checkpoint(root: Path) -> Path:
    """The newest whole checkpoint under `root`. Raises CheckpointError where there is none."""
    pointer = root / _LATEST
    if not pointer.exists():
        raise CheckpointError(f"{root}: no checkpoint to resume from; start without --resume.")
    folder = root / pointer.read_text().strip()
    if not folder.is_dir():
        raise CheckpointError(f"{pointer}: names {folder.name}, which is not there; write the name of one that is.")
    return folder


def point_to(folder: Path) -> None:
    """Make the whole checkpoint in `folder` the latest of its run."""
    pointer = folder.with_name(_LATEST + ".partial")
    pointer.write_text(folder.name + "\n")
    pointer.rename(folder.with_name(_LATEST))
