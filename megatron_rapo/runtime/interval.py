"""Decide whether something that happens every N steps is due. No torch."""

from __future__ import annotations


def is_due(step: int, every: int) -> bool:
    """Return whether `step` is a multiple of `every` (step 0 is one). With `every` = 0, no step is due."""
    return every > 0 and step % every == 0
