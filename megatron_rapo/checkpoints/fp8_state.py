"""The extra state of Transformer Engine's FP8 layers in a checkpoint, read without Transformer Engine.

Transformer Engine itself unpickles it without any check. So mcore/safe_loading.py has this file read it first: what is
refused here does not get there.

Each layer's is one object: a tensor of bytes (Transformer Engine 2), a pickle of its recipe and, where scaling is
delayed, of the history of largest magnitudes and the scales made of it. Cutting a checkpoint up anew keeps it as it is;
a Hugging Face folder has no place for it, and a checkpoint made of one begins without, as a new run does.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

OBJECT = "._extra_state"
_RECIPES = {
    *("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling", "NVFP4BlockScaling"),
    *("Format", "_FormatHelper", "MMParams", "QParams", "Recipe"),
}
"""The classes in Transformer Engine's pickles, all of transformer_engine.common.recipe."""


@dataclass(frozen=True)
class Fp8State:
    """Of one layer."""

    recipe: str  # Transformer Engine's name: DelayedScaling, Float8CurrentScaling, ...
    largest: float | None  # magnitude in the forward pass' history; None where scaling is not delayed


def read_fp8_state(content: bytes) -> Fp8State | None:
    """Of an object as a checkpoint has it; None where FP8 was not used. Raises ValueError for another format."""
    try:
        [state] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        if state is None or not state.numel():
            return None
        found = _Unpickler(BytesIO(state.numpy().tobytes())).load()
    except Exception as error:  # of any kind, as of any bytes
        raise ValueError(f"not the state of an FP8 layer of Transformer Engine 2 ({error!r})") from error
    if found is None:
        return None
    history = found.get("amax_history_fwd")
    return Fp8State(type(found["recipe"]).__name__, None if history is None else float(history.max()))


def describe(contents: Iterable[bytes]) -> str:
    """Of all layers, in a line."""
    states, unknown = [], 0
    for content in contents:
        try:
            states.append(read_fp8_state(content))
        except ValueError:
            unknown += 1
    used = [state for state in states if state]
    if not used and not unknown:
        return "none"
    said = [f"{' and '.join(sorted({state.recipe for state in used}))} in {len(used)} layers"] if used else []
    largest = [state.largest for state in used if state.largest is not None]
    said += [f"largest magnitude {max(largest):.3g}"] if largest else []
    said += [f"{unknown} objects of another format"] if unknown else []
    return ", ".join(said)


class _Unpickler(pickle.Unpickler):
    """Tensors, and recipes by their names; nothing that a file says is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "transformer_engine.common.recipe" and name in _RECIPES:
            return type(name, (_Recipe,), {})
        if (module, name) == ("builtins", "getattr"):  # how some Pythons pickle a member of an enumeration
            return _member
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in it")


def _member(owner: Any, name: str) -> _Recipe:
    if getattr(owner, "__name__", "") != "Format" or not name.isupper():
        raise pickle.UnpicklingError(f"an attribute {name} is not expected in it")
    return _Recipe()


class _Recipe:
    """Stands for a class of Transformer Engine: its name, and any content."""

    def __new__(cls, *_args: Any) -> _Recipe:
        return object.__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...
