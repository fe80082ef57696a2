"""Implement run.deterministic: the same run on the same GPUs gives the same bits. On CPU this is always so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron_rapo.config import ConfigError

VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),  # Transformer Engine's attention
    "NCCL_ALGO": ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain"),  # NVLS sums in the order of arrival
}
"""Environment variables that libraries read at start, with their deterministic values. The first value is set."""


def set_variables() -> None:
    """Set VARIABLES in this process, before it uses a GPU. Raises ConfigError if one is set to another value."""
    for name, values in VARIABLES.items():
        if os.environ.setdefault(name, values[0]) not in values:
            raise ConfigError(
                f"run.deterministic=true: needs {name}={' or '.join(values)}, but the environment has "
                f"{name}={os.environ[name]}; unset it, or set run.deterministic=false."
            )


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Make torch refuse (RuntimeError) operations without a deterministic implementation, if `wanted`.

    Applies only within this context, because vLLM's sampler may use such operations.
    """
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted or before[0])
    memory.fill_uninitialized_memory = False  # would cost a pass over all new memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
