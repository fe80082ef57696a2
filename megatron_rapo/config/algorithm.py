"""The section on the objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megatron_rapo import choices
from megatron_rapo.config.section import MAX_VALUE, OpenChoice, Section


class AlgorithmConfig(Section):
    """The objective: clipped surrogate - alpha * divergence + beta * entropy (algo/loss.py)."""

    divergence: Annotated[str, OpenChoice(choices.DIVERGENCES)] = "forward_kl"
    """The penalty, named by its gradient (algo/divergences.py lists them; the audit command measures them), or your own
    (docs/extending.md)."""
    alpha: float = Field(default=1e-3, ge=0, le=MAX_VALUE)
    """Coefficient of the divergence; 0 with divergence none."""
    beta: float = Field(default=1e-3, ge=0, le=MAX_VALUE)
    """Coefficient of the policy's entropy, a bonus."""
    phi: Annotated[str, OpenChoice(choices.PHI_SHAPES)] = "linear"
    """How the reference's exponent rises with the reward, from phi_min to phi_max; constant is phi_max throughout; or a
    function of your own (docs/extending.md)."""
    phi_min: float = Field(default=0.9, ge=0, le=1)
    """Exponent of the reference at the lowest reward; 0 makes it uniform, which drives the policy there."""
    phi_max: float = Field(default=1.0, ge=0, le=1)
    """Exponent of the reference at the highest reward; 1 leaves the reference as it is."""
    phi_exponent: float = Field(default=2.0, ge=1e-3, le=1e3)
    """Of phi = power: phi rises as the reward's place in its range to this exponent."""
    phi_sharpness: float = Field(default=10.0, ge=1e-3, le=MAX_VALUE)
    """Of phi = sigmoid: its steepness at the middle of the reward's range; a step where it is large."""
    advantage: Annotated[str, OpenChoice(choices.ADVANTAGES)] = "mean_std"
    """Reward relative to its group (algo/advantages.py): mean_std is GRPO's, mean is Dr. GRPO's; or your own
    (docs/extending.md)."""
    aggregation: Literal["token", "sequence"] = "token"
    """What the objective is a mean over: all tokens alike (DAPO), or sequences, each a mean of its tokens (GRPO)."""
    ratio: Literal["token", "sequence"] = "token"
    """The surrogate's probability ratio: each token's (PPO, GRPO), or its sequence's geometric mean (GSPO)."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The surrogate's probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0, le=MAX_VALUE)
    """The surrogate's probability ratio is clipped above at 1 + clip_high."""
    overlong: Literal["keep", "mask", "mask_keep_baseline"] = "keep"
    """Completions that the length limit cut off: keep trains on them; mask leaves them out of the loss and of their
    group's mean and deviation; mask_keep_baseline leaves them out of the loss only."""
    importance_cap: float = Field(default=2.0, ge=1, le=MAX_VALUE)
    """Truncation of the detached importance weights: old policy over engine, current policy over engine."""
    log_rho_cap: float = Field(default=10.0, gt=0, le=80)
    """Bound of |log rho| before it is exponentiated, nats; hits are counted, their gradient is kept."""

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, settings: Any) -> Any:
        """Without a divergence there is neither coefficient nor reference; a constant phi has one value."""
        if not isinstance(settings, dict):
            return settings
        if settings.get("divergence") == "none":
            settings = {"alpha": 0.0, "phi": "constant", **settings}
        if settings.get("phi") == "constant":
            settings = {"phi_min": settings.get("phi_max", 1.0), **settings}
        return settings

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        if self.phi_min > self.phi_max:
            raise ValueError(
                f"algorithm.phi_min={self.phi_min}: above phi_max={self.phi_max}, but phi must rise with the reward; "
                "set algorithm.phi_min <= algorithm.phi_max."
            )
        if self.divergence == "none" and self.alpha > 0:
            raise ValueError(
                f"algorithm.alpha={self.alpha}: does nothing with algorithm.divergence=none; "
                "set algorithm.alpha=0 or name a divergence."
            )
        if self.divergence == "none" and (self.phi != "constant" or self.phi_max < 1):
            raise ValueError(
                f"algorithm.phi={self.phi}, phi_max={self.phi_max}: do nothing with algorithm.divergence=none; "
                "leave them out or name a divergence."
            )
        if self.phi == "constant" and self.phi_min < self.phi_max:
            raise ValueError(
                f"algorithm.phi_min={self.phi_min}: does nothing with algorithm.phi=constant, which is phi_max="
                f"{self.phi_max} at every reward; leave it out or name another shape of phi."
            )
        if self.divergence != "none" and self.alpha == 0:
            raise ValueError(
                f"algorithm.alpha=0: algorithm.divergence={self.divergence} would be scored and do nothing; "
                "set algorithm.alpha > 0 or algorithm.divergence=none."
            )
        self._refuse_idle("phi_exponent", self.phi != "power", f"algorithm.phi={self.phi}")
        self._refuse_idle("phi_sharpness", self.phi != "sigmoid", f"algorithm.phi={self.phi}")
        without_ratio = self.divergence in choices.WITHOUT_RATIO
        self._refuse_idle("log_rho_cap", without_ratio, f"algorithm.divergence={self.divergence}")
        return self

    def _refuse_idle(self, field: str, idle: bool, because: str) -> None:
        """A setting that was written down must do something."""
        if idle and getattr(self, field) != type(self).model_fields[field].default:
            raise ValueError(
                f"algorithm.{field}={getattr(self, field)}: does nothing with {because}; leave it out, or change that."
            )
