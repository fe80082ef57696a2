"""The [precision] section: number formats, and the choice of an FP8 recipe (fp8_recipes.py)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_SIZE, MAX_VALUE, Section
from megatron_rapo.fp8_recipes import FP8_RECIPES, Fp8RecipeName

_LEFT_OUT = ("bf16_layers_at_start", "bf16_layers_at_end")


_OF_FP8 = ("fp8_recipe", *_LEFT_OUT, "bf16_reference")


class PrecisionConfig(Section):
    """Choose the number formats of the trainer, and how far trainer and engine may differ."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Keep weights and activations in this format. Gradients and the optimizer's own weights are always float32.

    Needs: bfloat16 for precision.fp8, rollout.fp8 and model.layers=transformer_engine.
    """
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """Compute the linears of the layers in this FP8 format; hybrid has e5m2 gradients. The output layer,
    log-probabilities, entropy and KL stay in high precision.

    Needs: precision.dtype=bfloat16, Transformer Engine, and a GPU that supports precision.fp8_recipe.
    Excludes: memory.reference_on_device; model.layers=torch.
    """
    fp8_recipe: Fp8RecipeName = "tensorwise"
    """Choose where FP8's scales come from. delayed: the largest magnitudes of earlier steps. tensorwise: those of the
    tensor itself. blockwise and mxfp8: those of its blocks.

    Needs: precision.fp8 other than none; a GPU of compute capability 8.9 (delayed, tensorwise), 9.0 (blockwise) or 10.0
    (mxfp8).
    """
    bf16_layers_at_start: int = Field(default=0, ge=0, le=MAX_SIZE)
    """Keep this many of the first layers in bfloat16 under FP8.

    Unit: layers.
    Limits: not above the layers of a pipeline stage.
    Needs: precision.fp8 other than none.
    Excludes: precision.fp8_recipe=delayed.
    """
    bf16_layers_at_end: int = Field(default=0, ge=0, le=MAX_SIZE)
    """Keep this many of the last layers in bfloat16 under FP8.

    Unit: layers.
    Limits: not above the layers of a pipeline stage.
    Needs: precision.fp8 other than none.
    Excludes: precision.fp8_recipe=delayed.
    """
    bf16_reference: bool = False
    """Score the reference in bfloat16 although the policy is in FP8. A KL that should be 0 at the start then has some
    noise.

    Needs: precision.fp8 other than none.
    """
    max_logprob_gap: float = Field(default=0.1, gt=0, le=MAX_VALUE)
    """Allow at most this mean absolute difference between the log-probabilities of the engine and the trainer on the
    tokens of a rollout.

    Unit: nats.
    Also called: training-inference mismatch.
    """
    on_logprob_gap: Literal["stop", "warn"] = "stop"
    """Choose what happens above precision.max_logprob_gap: end the run (stop), or print a warning and go on (warn)."""

    @model_validator(mode="after")
    def _check(self) -> PrecisionConfig:
        if self.fp8 != "none" and self.dtype != "bfloat16":
            raise ValueError(
                f"precision.fp8={self.fp8}: needs precision.dtype=bfloat16, not {self.dtype}; set it, or fp8=none."
            )
        for name in _OF_FP8:
            value = getattr(self, name)
            if self.fp8 == "none" and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"precision.{name}={_written(value)}: does nothing with precision.fp8=none; set fp8=hybrid, or "
                    "leave it out."
                )
            if name in _LEFT_OUT and value and not FP8_RECIPES[self.fp8_recipe].can_leave_layers_out:
                raise ValueError(
                    f"precision.{name}={value}: {self.fp8_recipe} scaling cannot leave layers out (its magnitudes "
                    "are reduced over all of them at once); set another precision.fp8_recipe, or leave it out."
                )
        return self


def _written(value: Any) -> str:
    """Return a value as a configuration file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
