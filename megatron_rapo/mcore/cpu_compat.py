"""Run megatron-core 0.16 with gloo on machines without a CUDA device. With one, change nothing.

Megatron's own modules get a view of torch in which "cuda" means "cpu". The rest of the process keeps the real torch.
Methods of tensors cannot be replaced only there, so `Tensor.cuda()` does nothing in the whole process. Delete this file
once megatron-core runs on CPU by itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn",
              "zeros_like", "empty_like", "ones_like")  # fmt: skip
# Modules whose `torch` is replaced. Megatron imports some of them lazily, so `install` imports all of them first.
_MODULES = (
    "parallel_state",
    "tensor_parallel.random",
    "models.gpt",
    "pipeline_parallel",
    "optimizer",
    "optimizer_param_scheduler",
    "distributed.finalize_model_grads",
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.strategies.torch",
    "dist_checkpointing.strategies.filesystem_async",
    "dist_checkpointing.strategies.state_dict_saver",
    "dist_checkpointing.strategies.fully_parallel",
    "dist_checkpointing.strategies.async_utils",
)


@functools.cache
def install() -> None:
    """Patch megatron-core for this process, once. Must run before any other module imports megatron.core."""
    if torch.cuda.is_available():
        return
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron warns without it
    jit = importlib.import_module("megatron.core.jit")
    jit.disable_jit_fuser()  # torch.compile of three-line helpers needs a C++ compiler and takes seconds
    view = _TorchView()
    for module in _MODULES:
        importlib.import_module(f"megatron.core.{module}")
    for name, loaded in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(loaded, "torch", None) is torch:
            loaded.torch = view  # type: ignore[attr-defined]
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign]
    _patch_tensor_type()
    _patch_rng_tracker()


def _on_cpu(device: Any) -> Any:
    """Return `device`, or the CPU in place of a CUDA device."""
    is_cuda = isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")
    return _CPU if is_cuda else device


def _redirected(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return on_cpu


class _Nothing:
    """A CUDA stream or event whose methods do nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class _CudaView(types.ModuleType):
    """torch.cuda as Megatron sees it."""

    FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
    Event = Stream = current_stream = default_stream = _Nothing
    synchronize = empty_cache = set_device = staticmethod(lambda *_args: None)
    current_device = staticmethod(lambda: _CPU)
    is_available = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    stream = staticmethod(lambda *_args: contextlib.nullcontext())
    get_rng_state = staticmethod(lambda *_args: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_args: torch.set_rng_state(state))
    manual_seed = staticmethod(torch.manual_seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _TorchView(types.ModuleType):
    """torch as Megatron sees it."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = _CudaView("torch.cuda")
        for name in _FACTORIES:
            setattr(self, name, _redirected(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _patch_tensor_type() -> None:
    """Make .type() return "torch.cuda.FloatTensor" and so on: Megatron's optimizer accepts only these types."""
    original = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, **kwargs: Any) -> Any:
        if dtype is not None:
            return original(self, dtype, **kwargs)
        name = original(self)
        asked_by_megatron = sys._getframe(1).f_globals.get("__name__", "").startswith("megatron.core")
        return name.replace("torch.", "torch.cuda.", 1) if asked_by_megatron else name

    torch.Tensor.type = type_  # type: ignore[method-assign, assignment]


def _patch_rng_tracker() -> None:
    """Make Megatron's tensor-parallel random states use the CPU generator."""
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    logging.getLogger(random.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())
