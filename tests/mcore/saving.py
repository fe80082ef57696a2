"""Save checkpoints for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_rapo.mcore.checkpoint_saver import Saver
from megatron_rapo.mcore.policy import Policy


def saved(root: Path, step: int, policy: Policy, state: dict[str, Any]) -> Path:
    """Save a checkpoint of `policy`, and wait for it. Collective."""
    saver = Saver(root, policy)
    folder = saver.save(step, state)
    saver.finish()
    return folder
