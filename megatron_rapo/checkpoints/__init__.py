"""Find, write and verify the files of a run's checkpoints. `mcore/checkpoint.py` decides what goes into one."""

from megatron_rapo.checkpoints.folders import (
    BY_TIME,
    INPUTS,
    MODEL_FILES,
    SETTINGS,
    CheckpointError,
    check_resumable,
    has_checkpoint,
    latest_checkpoint,
    point_to,
    prune,
    save_settings,
)

__all__ = [
    "BY_TIME",
    "INPUTS",
    "MODEL_FILES",
    "SETTINGS",
    "CheckpointError",
    "check_resumable",
    "has_checkpoint",
    "latest_checkpoint",
    "point_to",
    "prune",
    "save_settings",
]
