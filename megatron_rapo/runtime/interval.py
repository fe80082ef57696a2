"""Decide what is done every so many steps. No torch."""

from __future__ import annotations


def is_due(step: int, every: int) -> bool:
    """Return whether `step` is a multiple of `every`, as step 0 is; with `every` = 0 no step is due."""
    return every > 0 and step % every == 0
