"""Read the extra state of Transformer Engine's FP8 layers from a checkpoint, without Transformer Engine.

Transformer Engine unpickles this state without any check. So mcore/safe_loading.py reads it here first and passes on
only what this module accepts.

Each layer has one object: a tensor of bytes (Transformer Engine 2) that is a pickle of its recipe. With delayed scaling
it also holds the history of largest magnitudes and the scales. Resharding copies it unchanged. A Hugging Face folder
has no place for it, so a checkpoint converted from one starts without it, like a new run.
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
"""Classes in Transformer Engine's pickles, all from transformer_engine.common.recipe."""


@dataclass(frozen=True)
class Fp8State:
    """FP8 state of one layer."""

    recipe: str  # name in Transformer Engine: DelayedScaling, Float8CurrentScaling, ...
    largest: float | None  # magnitude in the forward history; None without delayed scaling


def read_fp8_state(content: bytes) -> Fp8State | None:
    """Read an object of a checkpoint. Return None if FP8 was not used. Raises ValueError for another format."""
    try:
        [state] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        if state is None or not state.numel():
            return None
        found = _Unpickler(BytesIO(state.numpy().tobytes())).load()
    except Exception as error:  # arbitrary bytes can raise anything
        raise ValueError(f"not the state of an FP8 layer of Transformer Engine 2 ({error!r})") from error
    if found is None:
        return None
    history = found.get("amax_history_fwd")
    return Fp8State(type(found["recipe"]).__name__, None if history is None else float(history.max()))


def describe(contents: Iterable[bytes]) -> str:
    """Describe the state of all layers in one line."""
    states, unknown = [], 0
    for content in contents:
        try:
            states.append(read_fp8_state(content))
        except ValueError:
            unknown += 1
    used = [state for state in states if state]
    if not used and not unknown:
        return "none"
    facts = [f"{' and '.join(sorted({state.recipe for state in used}))} in {len(used)} layers"] if used else []
    largest = [state.largest for state in used if state.largest is not None]
    facts += [f"largest magnitude {max(largest):.3g}"] if largest else []
    facts += [f"{unknown} objects of another format"] if unknown else []
    return ", ".join(facts)


class _Unpickler(pickle.Unpickler):
    """Load tensors, and recipes by name only. Never run code that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "transformer_engine.common.recipe" and name in _RECIPES:
            return type(name, (_Recipe,), {})
        if (module, name) == ("builtins", "getattr"):  # some Python versions pickle enum members this way
            return _member
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in it")


def _member(owner: Any, name: str) -> _Recipe:
    if getattr(owner, "__name__", "") != "Format" or not name.isupper():
        raise pickle.UnpicklingError(f"an attribute {name} is not expected in it")
    return _Recipe()


class _Recipe:
    """Stands in for a class of Transformer Engine: keeps its name and drops its content."""

    def __new__(cls, *_args: Any) -> _Recipe:
        return object.__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...
