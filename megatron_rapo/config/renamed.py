"""Settings that had another name in earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "batch.refill_rounds": "batch.dynamic_sampling_rounds",
    "batch.spare_prompts": "batch.oversampled_prompts",
    "batch.max_carried_steps": "batch.partial_rollout_steps",
}
"""Earlier name -> present name. A configuration with an earlier name is refused; files of earlier runs are read."""


def with_present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run wrote, {section: {field: value} or None}, by their present names."""
    names = {tuple(earlier.split(".")): name.split(".")[1] for earlier, name in RENAMED.items()}
    return {
        section: {names.get((section, field), field): value for field, value in fields.items()} if fields else fields
        for section, fields in settings.items()
    }
