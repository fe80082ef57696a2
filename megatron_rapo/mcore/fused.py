"""Find the fused kernels on this machine, Megatron's settings for them, and the cost of each missing one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

TRANSFORMER_ENGINE, APEX, APEX_GRADIENTS = "transformer_engine", "apex", "fused_weight_gradient_mlp_cuda"  # modules


@dataclass(frozen=True)
class Kernel:
    """A fused kernel: whether it is `used` here, and its setting in Megatron's TransformerConfig, if any."""

    name: str
    used: bool
    needs: str
    without: str  # what it costs
    setting: str | None = None


def fused_kernels(layers: str) -> list[Kernel]:
    """Return the fused kernels of this machine for `layers` (torch or transformer_engine). A CPU has none."""
    if not torch.cuda.is_available():
        return []
    return kernels(layers, there=lambda name: importlib.util.find_spec(name) is not None)


def kernels(layers: str, there: Callable[[str], bool]) -> list[Kernel]:
    """Return the fused kernels of a GPU machine. `there` says whether a module is installed."""
    return [
        Kernel(
            "AdamW",
            used=there(TRANSFORMER_ENGINE) or there(APEX),
            needs="Transformer Engine or apex",
            without="an optimizer step reads and writes its state several times",
        ),
        Kernel(
            "gradient accumulation",
            used=there(APEX_GRADIENTS),
            needs="apex built with --cuda_ext",
            without="weight gradients are rounded to the weights' dtype, then added to float32 in another pass",
            setting="gradient_accumulation_fusion",
        ),
        Kernel(
            "SwiGLU",
            used=there("triton"),
            needs="triton",
            without="the feed-forward layers read and write what lies between SwiGLU's operations",
            setting="bias_activation_fusion",
        ),
        Kernel(
            "rotary embedding",
            used=layers == TRANSFORMER_ENGINE,
            needs="Transformer Engine's layers",
            without="queries and keys are read and written by one operation after the other in each layer",
            setting="apply_rope_fusion",
        ),
    ]


def settings(found: Sequence[Kernel]) -> dict[str, bool]:
    """Return Megatron's settings for the kernels that are used."""
    return {kernel.setting: True for kernel in found if kernel.setting and kernel.used}


def described(found: Sequence[Kernel]) -> list[str]:
    """Return lines that describe the kernels, for the start of a run."""
    used = ", ".join(kernel.name for kernel in found if kernel.used) or "none"
    missing = [f"no fused {k.name}: {k.without}; it needs {k.needs}" for k in found if not k.used]
    return [f"fused kernels: {used}", *missing] if found else []
