"""Write an engine's parameters shard by shard, by vLLM's names.

If vLLM uses a parameter as the parameter map has it, it is written in place: on a GPU in the trainer's precision, on a
CPU without packing. If vLLM keeps another form (oneDNN's on a CPU, FP8), the shard is assembled in separate memory.
vLLM's layerwise reload then packs or quantises it again, also in place. Behaviour described here was seen in vLLM
0.32.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from megatron_rapo.rollout import vllm_patches
from megatron_rapo.runtime.patching import patched

Shapes = Mapping[str, tuple[int, ...]]  # of this rank's shards, by name


def open_weights(model: torch.nn.Module, vllm_config: Any, shapes: Shapes, dtype: torch.dtype) -> Weights:
    """Open the parameters of a vLLM model. `shapes` come from the parameter map.

    Raises ValueError if the model has other parameters than these.
    """
    parameters = dict(model.named_parameters())
    if all(n in parameters and (parameters[n].shape, parameters[n].dtype) == (s, dtype) for n, s in shapes.items()):
        check_parameters(shapes, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
        return PlainWeights({name: parameters[name].data for name in shapes})
    packed = PackedWeights(model, vllm_config, dtype)
    check_parameters(shapes, packed.shapes)
    return packed


def check_parameters(expected: Shapes, found: Shapes) -> None:
    """Raise ValueError if the engine's parameters are not those of the map."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if wrong:
        raise ValueError(
            f"vLLM's parameters are not those of the parameter map, in {len(wrong)} places: "
            f"{'; '.join(wrong[:10])}{'; ...' if len(wrong) > 10 else ''}. The model folder is not what its "
            "config.json says, or this version of vLLM has another layout (models/parameter_map.py)."
        )


class PlainWeights:
    """Parameters that vLLM uses as they are."""

    keeps = True

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._missing: set[str] = set()

    @contextmanager
    def opened(self) -> Iterator[PlainWeights]:
        """Open the parameters for writing. Every one must be written once. Raises RuntimeError if some were not."""
        self._missing = set(self._parameters)
        yield self
        _refuse_missing(self._missing)

    def target(self, name: str) -> Tensor:
        return self._parameters[name]

    def complete(self, name: str) -> None:
        self._missing.discard(name)


class PackedWeights:
    """Parameters that vLLM keeps in another form."""

    keeps = False

    def __init__(self, model: torch.nn.Module, vllm_config: Any, dtype: torch.dtype) -> None:
        self._model, self._config, self._dtype = model, vllm_config, dtype
        self._device = next(model.parameters()).device
        self._places = dict(_places(model))
        self._missing: set[str] = set()
        self._open: dict[str, Tensor] = {}
        self.shapes = {name: tuple(_unpacked(*place).shape) for name, place in self._places.items()}

    @contextmanager
    def opened(self) -> Iterator[PackedWeights]:
        """Open the parameters for writing. Every one must be written once. Raises RuntimeError if some were not."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        self._missing = set(self.shapes)
        with set_current_vllm_config(self._config), self._device, torch.no_grad():
            initialize_layerwise_reload(self._model)
            with ExitStack() as loaders:
                for module, name in self._places.values():
                    loaders.enter_context(_taking_shards(module, name))
                yield self
                _refuse_missing(self._missing)
                finalize_layerwise_reload(self._model, self._config.model_config)
            if vllm_patches.on_cpu():
                vllm_patches.repack_tied_weights(self._model)

    def target(self, name: str) -> Tensor:
        if name not in self._open:  # padding is 0
            self._open[name] = torch.zeros(self.shapes[name], dtype=self._dtype, device=self._device)
        return self._open[name]

    def complete(self, name: str) -> None:
        module, parameter = self._places[name]
        getattr(module, parameter).weight_loader(getattr(module, parameter), self._open.pop(name))
        self._missing.discard(name)


def _refuse_missing(names: set[str]) -> None:
    if names:
        raise RuntimeError(
            f"{len(names)} of the engine's parameters were not written: {', '.join(sorted(names)[:10])}"
            f"{', ...' if len(names) > 10 else ''}"
        )


Weights = PlainWeights | PackedWeights


def _places(model: torch.nn.Module) -> Iterator[tuple[str, tuple[torch.nn.Module, str]]]:
    """Yield each parameter's module and name in the unpacked model. A tied parameter is yielded once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen and _unpacked(module, name) is not None:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", (module, name)


def _unpacked(module: torch.nn.Module, name: str) -> Tensor:
    """Return the parameter as it was before vLLM packed it (vLLM never packs a bias), or None if there was none."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    parameters, _ = get_layerwise_info(module).restore_metadata
    return parameters.get(name, getattr(module, name) if name == "bias" else None)


@contextmanager
def _taking_shards(module: torch.nn.Module, name: str) -> Iterator[None]:
    """Make the layerwise reload accept this rank's shard of the parameter instead of a whole tensor."""
    from vllm.model_executor.model_loader.reload.layerwise import make_online_process_loader

    parameter = getattr(module, name)
    with patched(parameter, weight_loader=_copy_shard):
        parameter.weight_loader = make_online_process_loader(module, name)
        yield


def _copy_shard(param: Tensor, loaded_weight: Tensor) -> None:
    """Copy a shard. The reload counts copied numbers and passes arguments by these names."""
    param.data.copy_(loaded_weight)
