"""run.deterministic: the same bits again from the same run on the same GPUs. On a CPU they are anyway."""

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
"""What libraries read when they start, with the values under which they are deterministic; the first is set."""


def set_variables() -> None:
    """Of this process, before anything uses a GPU. Raises ConfigError where one is set otherwise."""
    for name, values in VARIABLES.items():
        if os.environ.setdefault(name, values[0]) not in values:
            raise ConfigError(
                f"run.deterministic=true: needs {name}={' or '.join(values)}, and the environment has "
                f"{name}={os.environ[name]}; unset it, or set run.deterministic=false."
            )


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within it torch refuses to compute what it can only compute differently each time (RuntimeError), if `wanted`.

    Not for the process as a whole: vLLM's sampler uses such functions, where their order does not matter.
    """
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted or before[0])
    memory.fill_uninitialized_memory = False  # a check that costs a pass over all new memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
