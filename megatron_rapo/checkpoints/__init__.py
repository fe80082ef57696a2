"""Checkpoints of a run: where they are, what their files hold, the format of their tensors.

What goes into one is written and read by `mcore/checkpoint.py`.
"""

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
