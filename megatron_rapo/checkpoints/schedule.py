"""Decide after which steps to save: the last, every N steps, and when the last checkpoint is N minutes old."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from megatron_rapo.config import CheckpointConfig
from megatron_rapo.runtime.distributed import of_first_rank
from megatron_rapo.runtime.interval import is_due


class Due(Enum):
    """Why a step is saved."""

    STEPS = "checkpoint.every_steps, or the end of the run"
    TIME = "checkpoint.every_minutes"


class SaveSchedule:
    """Decides by the first process' clock, so all processes agree. `clock` returns seconds."""

    def __init__(
        self, settings: CheckpointConfig, total_steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._total_steps, self._clock = settings, total_steps, clock
        self.saved()

    def saved(self) -> None:
        """Restart the count of minutes."""
        self._since = self._clock()

    def due(self, step: int) -> Due | None:
        """Return why to save after `step`, or None. Collective over the world."""
        if step >= self._total_steps or is_due(step, self._settings.every_steps):
            return Due.STEPS
        minutes = self._settings.every_minutes
        if minutes and of_first_rank(self._clock() - self._since >= 60 * minutes):
            return Due.TIME
        return None
