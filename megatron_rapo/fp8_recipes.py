"""The FP8 recipes of precision.fp8_recipe, and what each needs. `mcore/fp8_settings.py` passes one to Megatron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fp8RecipeName = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]


@dataclass(frozen=True, kw_only=True)
class Fp8Recipe:
    """What a recipe needs of the GPU and of the run."""

    capability: tuple[int, int]
    """Least compute capability of a GPU."""
    token_multiple: int = 16
    """Number that must divide the tokens of each process."""
    can_leave_layers_out: bool = True
    """Whether the first and the last layers may stay in bfloat16."""


FP8_RECIPES: dict[str, Fp8Recipe] = {
    "delayed": Fp8Recipe(capability=(8, 9), can_leave_layers_out=False),
    "tensorwise": Fp8Recipe(capability=(8, 9)),
    "blockwise": Fp8Recipe(capability=(9, 0)),
    "mxfp8": Fp8Recipe(capability=(10, 0), token_multiple=32),
}
