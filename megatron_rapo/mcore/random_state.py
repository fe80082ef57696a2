"""Save and restore the states of all random number generators of a process.

The trainer itself does not use them (data order and sampled tokens have their own seeds), but the user's plug-ins may.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker


def random_state() -> dict[str, Any]:
    """Return the states of Python, NumPy, torch on the host and on this process's GPU, and Megatron's by name."""
    cuda = torch.cuda.is_available()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if cuda else None,
        "megatron": dict(get_cuda_rng_tracker().get_states()) if cuda else {},
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned. Without a GPU, restores only the host's."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
        get_cuda_rng_tracker().set_states(state["megatron"])
