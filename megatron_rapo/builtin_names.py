"""Names of the built-in values of settings that also accept the user's own code (docs/extending.md).

This module needs no torch, so a misspelt name is refused before slow imports. The module named beside each tuple has
the entries, and asserts on import that it has exactly these names.
"""

from __future__ import annotations

DIVERGENCES = (  # algo/divergences.py
    "forward_kl",
    "forward_kl_exact",
    "forward_kl_k3",
    "rapo_paper",
    "reverse_kl",
    "reverse_kl_k3",
    "reverse_kl_exact",
    "none",
)
WITHOUT_RATIO = ("forward_kl_exact", "reverse_kl_exact", "none")
"""Divergences that exponentiate no log-ratio, so algorithm.log_rho_cap has no effect."""
ADVANTAGES = ("mean_std", "mean", "leave_one_out")  # algo/advantages.py
PHI_SHAPES = ("linear", "power", "sigmoid", "constant")  # algo/reweighting.py
TEMPLATES = ("plain", "qwen-boxed", "abel", "chat")  # data/templates.py
WRITERS = ("tensorboard", "wandb", "mlflow")  # monitor/writer_registry.py


def is_reference(value: str) -> bool:
    """Return whether `value` has the form MODULE:NAME or FILE.py:NAME."""
    where, _, name = value.rpartition(":")
    return bool(where and name)
