"""Look up the names in [algorithm]: built-in entries of algo/, or the user's own, which are tried before use.

docs/extending.md says what to write. Each process loads the user's code once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from megatron_rapo.algo import ADVANTAGES, DIVERGENCES, PHI_SHAPES, Advantage, Divergence, Penalty, PhiShape
from megatron_rapo.config import AlgorithmConfig
from megatron_rapo.runtime.user_code import UserCodeError, check_function, guarded, load_function, load_object

_TRIAL_FAILED = "failed on a trial call"


def check_algorithm(settings: AlgorithmConfig) -> None:
    """Load and try everything that [algorithm] names. Raises UserCodeError."""
    divergence_of(settings.divergence)
    advantage_of(settings.advantage)
    phi_shape_of(settings.phi)


def divergence_of(name: str) -> Divergence:
    """Return the divergence that algorithm.divergence names. Raises UserCodeError."""
    return DIVERGENCES[name] if name in DIVERGENCES else _own_divergence(name)


@cache
def _own_divergence(reference: str) -> Divergence:
    """Load a Divergence, or a function of (logp_T, ref_logp_T, log_rho_cap) that claims nothing."""
    field = f"algorithm.divergence={reference!r}"
    found = load_object(reference, field)
    if not isinstance(found, Divergence):
        found = Divergence(estimate=found, corrected=True)
    check_function(found.estimate, field, ("logp_T", "ref_logp_T", "log_rho_cap"))
    if not found.exact:
        _try_divergence(found.estimate, field)
    return found


def _try_divergence(estimate: Callable[[Tensor, Tensor, float], Penalty], field: str) -> None:
    """Raise UserCodeError if the result is not a Penalty of finite numbers with a gradient."""
    logp_T = torch.tensor([-0.25, -1.0, -6.0], requires_grad=True)
    ref_logp_T = torch.tensor([-0.5, -1.0, -3.0])
    penalty = guarded(lambda: estimate(logp_T, ref_logp_T, 10.0), field, _TRIAL_FAILED)
    if not isinstance(penalty, Penalty):
        raise UserCodeError(f"{field}: returned {type(penalty).__name__}; return a megatron_rapo.algo.Penalty.")
    for part, values_T in penalty._asdict().items():
        _check_tensor(values_T, logp_T, f"{field}: {part}", dtype=torch.bool if part == "capped_T" else logp_T.dtype)
    if penalty.value_T.requires_grad:
        raise UserCodeError(f"{field}: value_T has a gradient, and it is only reported; detach it.")
    if not penalty.loss_T.requires_grad:
        raise UserCodeError(f"{field}: loss_T has no gradient, so it would do nothing; make it depend on logp_T.")
    gradient_T = guarded(lambda: torch.autograd.grad(penalty.loss_T.sum(), logp_T)[0], field, _TRIAL_FAILED)
    _check_tensor(gradient_T, logp_T, f"{field}: the gradient of loss_T", dtype=logp_T.dtype)


def advantage_of(name: str) -> Advantage:
    """Return the function that algorithm.advantage names. Raises UserCodeError."""
    return ADVANTAGES[name] if name in ADVANTAGES else _own_advantage(name)


@cache
def _own_advantage(reference: str) -> Advantage:
    field = f"algorithm.advantage={reference!r}"
    function = load_function(reference, field, ("deviations_PG", "baseline_PG"))
    # In the first group one of four completions is right. In the second all are equal: is there a division by zero?
    deviations_PG = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    baseline_PG = torch.ones_like(deviations_PG, dtype=torch.bool)
    found_PG = guarded(lambda: function(deviations_PG.clone(), baseline_PG), field, _TRIAL_FAILED)
    _check_tensor(found_PG, deviations_PG, f"{field}: the result", dtype=deviations_PG.dtype)
    return function


def phi_shape_of(name: str) -> PhiShape:
    """Return the function that algorithm.phi names. Raises UserCodeError."""
    return PHI_SHAPES[name] if name in PHI_SHAPES else _own_phi_shape(name)


@cache
def _own_phi_shape(reference: str) -> PhiShape:
    """Load a function of the share alone. Its result must stay between 0 and 1 and never fall."""
    field = f"algorithm.phi={reference!r}"
    function = load_function(reference, field, ("share",))
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    kept = guarded(lambda: function(share.clone()), field, _TRIAL_FAILED)
    _check_tensor(kept, share, f"{field}: the result", dtype=share.dtype)
    if kept.min() < 0 or kept.max() > 1:
        raise UserCodeError(
            f"{field}: the result goes from {kept.min():g} to {kept.max():g}, and phi would leave phi_min to phi_max; "
            "return numbers from 0 to 1."
        )
    if (kept.diff() < 0).any():
        raise UserCodeError(f"{field}: the result falls somewhere, and phi must rise with the reward; let it rise.")
    return lambda share, exponent, sharpness: function(share)


def _check_tensor(found: object, like: Tensor, what: str, *, dtype: torch.dtype) -> None:
    """Raise UserCodeError if `found` is not a finite tensor of `like`'s shape and of `dtype`."""
    if not isinstance(found, Tensor):
        raise UserCodeError(f"{what} is {type(found).__name__}; return a tensor.")
    if found.shape != like.shape or found.dtype != dtype:
        raise UserCodeError(
            f"{what} has shape {list(found.shape)} and {found.dtype}, from inputs of shape {list(like.shape)}; return "
            f"the same shape, {dtype}."
        )
    if not found.isfinite().all():
        raise UserCodeError(f"{what} is not finite ({found.flatten().tolist()}); return finite numbers.")
