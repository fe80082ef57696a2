"""The trainer's layers and number format, by the settings and the machine."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from megatron_rapo.runtime.devices import Backend, has_transformer_engine, itemsize


@pytest.mark.parametrize(
    ("setting", "dtype", "cuda", "te", "expected"),
    [
        ("auto", "bfloat16", True, True, "transformer_engine"),
        ("auto", "bfloat16", True, False, "torch"),
        ("auto", "bfloat16", False, True, "torch"),
        ("auto", "float32", True, True, "torch"),  # its packed attention has no float32 kernels
        ("torch", "bfloat16", True, True, "torch"),
        ("transformer_engine", "bfloat16", False, False, "transformer_engine"),
    ],
)
def test_layers(load, monkeypatch, setting, dtype, cuda, te, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if te else None)
    backend = Backend.resolve(load(f"model.layers={setting}", f"precision.dtype={dtype}"))
    assert backend == Backend(expected, getattr(torch, dtype))
    assert backend.transformer_engine == (expected == "transformer_engine")
    assert has_transformer_engine() == (cuda and te)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_a_number(load, dtype, size):
    assert itemsize(load(f"precision.dtype={dtype}")) == size
