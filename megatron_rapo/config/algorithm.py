"""The section on the objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megatron_rapo import builtin_names
from megatron_rapo.config.section import MAX_VALUE, OpenChoice, Section


class AlgorithmConfig(Section):
    """Define the objective: clipped surrogate - alpha * divergence + beta * entropy (algo/loss.py)."""

    divergence: Annotated[str, OpenChoice(builtin_names.DIVERGENCES)] = "forward_kl"
    """Choose the penalty towards the reweighted reference. Each is named after the quantity whose gradient it follows:
    algo/divergences.py lists them, and `audit` measures them. none trains without a reference. docs/extending.md shows
    how to use your own.

    Excludes: none excludes algorithm.alpha above 0, algorithm.phi other than constant, algorithm.phi_max below 1,
    algorithm.log_rho_cap and memory.reference_on_device.
    Also called: KL penalty, forward KL, reverse KL.
    """
    alpha: float = Field(default=1e-3, ge=0, le=MAX_VALUE)
    """Multiply the divergence by this coefficient.

    Unit: none.
    Default: 0 with algorithm.divergence=none.
    Needs: more than 0 with any algorithm.divergence but none, and 0 with none.
    Also called: KL coefficient.
    """
    beta: float = Field(default=1e-3, ge=0, le=MAX_VALUE)
    """Multiply the policy's entropy, a bonus, by this coefficient.

    Unit: none.
    Also called: entropy bonus, entropy coefficient.
    """
    phi: Annotated[str, OpenChoice(builtin_names.PHI_SHAPES)] = "linear"
    """Choose how phi, the exponent of the reference, rises with the reward from phi_min to phi_max. constant uses
    phi_max at every reward. docs/extending.md shows how to use your own.

    Default: constant with algorithm.divergence=none.
    Excludes: algorithm.divergence=none allows only constant; constant excludes an algorithm.phi_min below
    algorithm.phi_max.
    Also called: reward-aware reference reweighting (RAPO).
    """
    phi_min: float = Field(default=0.9, ge=0, le=1)
    """Raise the reference to this exponent at the lowest reward. 0 makes the reference uniform, which drives the policy
    towards uniform there.

    Unit: none.
    Default: phi_max with algorithm.phi=constant.
    Limits: not above algorithm.phi_max.
    """
    phi_max: float = Field(default=1.0, ge=0, le=1)
    """Raise the reference to this exponent at the highest reward. 1 leaves the reference as it is.

    Unit: none.
    Excludes: a value below 1 excludes algorithm.divergence=none.
    """
    phi_exponent: float = Field(default=2.0, ge=1e-3, le=1e3)
    """Raise the reward's place in its range, from 0 to 1, to this exponent to get phi.

    Unit: none.
    Needs: algorithm.phi=power.
    """
    phi_sharpness: float = Field(default=10.0, ge=1e-3, le=MAX_VALUE)
    """Set the steepness of the sigmoid phi at the middle of the reward's range. A large value makes it a step.

    Unit: none.
    Needs: algorithm.phi=sigmoid.
    """
    advantage: Annotated[str, OpenChoice(builtin_names.ADVANTAGES)] = "mean_std"
    """Choose how a reward is compared with its group (algo/advantages.py). mean_std subtracts the mean and divides by
    the standard deviation (GRPO). mean only subtracts the mean (Dr. GRPO). leave_one_out subtracts the mean of the
    others (RLOO). docs/extending.md shows how to use your own."""
    aggregation: Literal["token", "sequence"] = "token"
    """Average the objective over all tokens alike (token, DAPO), or over sequences, each the mean of its tokens
    (sequence, GRPO).

    Also called: token-level loss, loss aggregation.
    """
    ratio: Literal["token", "sequence"] = "token"
    """Use the probability ratio of each token (token, PPO and GRPO), or the geometric mean over its sequence (sequence,
    GSPO).

    Also called: importance sampling level, GSPO.
    """
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Clip the probability ratio from below at 1 - clip_low.

    Unit: none.
    Also called: clip range, epsilon_low.
    """
    clip_high: float = Field(default=0.2, gt=0, le=MAX_VALUE)
    """Clip the probability ratio from above at 1 + clip_high. A value above clip_low is what DAPO calls clip-higher.

    Unit: none.
    Also called: clip-higher (DAPO), clip range, epsilon_high.
    """
    overlong: Literal["keep", "mask", "mask_keep_baseline"] = "keep"
    """Choose what happens to completions that the length limit cut off. keep trains on them. mask leaves them out of
    the loss and of their group's mean and deviation. mask_keep_baseline leaves them out of the loss only.

    Also called: overlong filtering (DAPO), truncated completions.
    """
    importance_cap: float = Field(default=2.0, ge=1, le=MAX_VALUE)
    """Truncate the detached importance weights at this value: old policy over engine, and current policy over engine.

    Unit: none.
    Also called: truncated importance sampling (TIS).
    """
    log_rho_cap: float = Field(default=10.0, gt=0, le=80)
    """Clamp the log-ratio log rho to plus and minus this value before exp, to avoid overflow. Clamped tokens are
    counted and keep their gradient.

    Unit: nats.
    Excludes: algorithm.divergence=none and those that end in _exact, which have no ratio.
    """

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
        without_ratio = self.divergence in builtin_names.WITHOUT_RATIO
        self._refuse_idle("log_rho_cap", without_ratio, f"algorithm.divergence={self.divergence}")
        return self

    def _refuse_idle(self, field: str, idle: bool, because: str) -> None:
        """Refuse a setting that was written down and does nothing."""
        if idle and getattr(self, field) != type(self).model_fields[field].default:
            raise ValueError(
                f"algorithm.{field}={getattr(self, field)}: does nothing with {because}; leave it out, or change that."
            )
