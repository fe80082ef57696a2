"""Read the FP8 state that Transformer Engine 2 pickles. A package of that name is made here."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import pytest
import torch

from megatron_rapo.checkpoints.fp8_state import Fp8State, describe, read_fp8_state
from megatron_rapo.checkpoints.tensors import saved_none

HISTORY = torch.tensor([[1.0, 0.5, 0.0], [0.25, 3.5, 0.0]])


@dataclass
class DelayedScaling:
    margin: int
    fp8_format: Any


class Format(Enum):
    HYBRID = 1


@pytest.fixture
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the classes under the names that they are pickled by."""
    module = ModuleType("transformer_engine.common.recipe")
    for each in (DelayedScaling, Format):
        monkeypatch.setattr(each, "__module__", module.__name__)
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.common", ModuleType("transformer_engine.common"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield


def saved(state: Any) -> bytes:
    """Return the bytes as in Megatron's checkpoint."""
    stream = io.BytesIO()
    torch.save([torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8)], stream)
    return stream.getvalue()


@pytest.fixture
def delayed(transformer_engine: None) -> bytes:
    state = {
        "recipe": DelayedScaling(0, Format.HYBRID),
        "scale_fwd": torch.ones(3),
        "amax_history_fwd": HISTORY,
        "scale_bwd": torch.ones(2),
        "amax_history_bwd": 9 * HISTORY,
        "extra_fp8_variables": {"num_gemms": 1},
    }
    return saved(state)


def test_a_layer_with_delayed_scaling(delayed: bytes) -> None:
    assert read_fp8_state(delayed) == Fp8State("DelayedScaling", 3.5)


def test_layers_without_fp8() -> None:
    empty = io.BytesIO()
    torch.save([torch.empty(0, dtype=torch.uint8)], empty)
    assert [read_fp8_state(content) for content in (saved_none(), empty.getvalue(), saved(None))] == [None] * 3


def test_other_scaling_keeps_nothing_but_the_recipe(transformer_engine: None) -> None:
    state = {"recipe": DelayedScaling(0, Format.HYBRID), "extra_fp8_variables": {}}
    assert read_fp8_state(saved(state)) == Fp8State("DelayedScaling", None)


class Wicked:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_nothing_that_it_says_is_run() -> None:
    with pytest.raises(ValueError, match=r"not the state of an FP8 layer .*system is not expected in it"):
        read_fp8_state(saved({"recipe": Wicked()}))


def test_a_line_for_all(delayed: bytes) -> None:
    assert describe([saved_none(), saved_none()]) == "none"
    assert describe([delayed, saved_none(), delayed]) == "DelayedScaling in 2 layers, largest magnitude 3.5"
    assert describe([delayed, b"?"]) == (
        "DelayedScaling in 1 layers, largest magnitude 3.5, 1 objects of another format"
    )
