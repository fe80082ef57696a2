"""Ways in which a side can be run on two cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DTYPES = ("float32", "bfloat16")
PARTS = ("rollout", "score", "train", "other")
"""What the seconds of a step are divided into; other is the whole without the first three."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    processes: int = 1
    threads: int = 2  # of each process
    dtype: str = "float32"  # of DTYPES: that the model is multiplied in
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the side's own configuration
    contender: bool = False  # it was the fastest of its number format somewhere, or near it
