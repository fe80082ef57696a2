"""Check which fused kernels a GPU uses, depending on the installed packages. A CPU has none."""

from __future__ import annotations

import pytest
import torch

from megatron_rapo.mcore.fused import described, fused_kernels, kernels, settings

GRADIENTS = "no fused gradient accumulation: weight gradients are rounded to the weights' dtype, then added to float32"


@pytest.mark.parametrize(
    ("layers", "modules", "used"),
    [
        ("torch", (), []),
        ("torch", ("triton",), ["SwiGLU"]),
        ("torch", ("triton", "apex"), ["AdamW", "SwiGLU"]),  # built without its extensions
        ("torch", ("triton", "transformer_engine"), ["AdamW", "SwiGLU"]),
        ("transformer_engine", ("triton", "transformer_engine"), ["AdamW", "SwiGLU", "rotary embedding"]),
        (
            "transformer_engine",
            ("triton", "transformer_engine", "apex", "fused_weight_gradient_mlp_cuda"),
            ["AdamW", "gradient accumulation", "SwiGLU", "rotary embedding"],
        ),
    ],
)
def test_what_is_there_is_used_and_said(layers: str, modules: tuple[str, ...], used: list[str]) -> None:
    found = kernels(layers, there=lambda name: name in modules)
    assert [kernel.name for kernel in found if kernel.used] == used
    first, *missing = described(found)
    assert first == f"fused kernels: {', '.join(used) or 'none'}"
    assert len(missing) == 4 - len(used)
    assert any(line.startswith(GRADIENTS) for line in missing) == ("gradient accumulation" not in used)
    for line in missing:
        assert "; it needs " in line


def test_megatron_is_told_of_those_that_it_has_a_setting_for() -> None:
    everything = kernels("transformer_engine", there=lambda _: True)
    assert settings(everything) == {
        "gradient_accumulation_fusion": True,
        "bias_activation_fusion": True,
        "apply_rope_fusion": True,
    }
    assert settings(kernels("torch", there=lambda _: False)) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_none_is_for_a_processor() -> None:
    assert fused_kernels("torch") == [] and described([]) == []
