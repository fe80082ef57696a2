"""Conversion to Megatron and back keeps every bit. Megatron itself loads and saves in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_rapo.checkpoints.tensors import Reader
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.reshard import reshard_megatron
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.convert.to_megatron import hf_to_megatron
from tests.launch import run_distributed
from tests.tiny_models import load_reference, save_tiny_model

SIZES: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 4, "hidden_size": 128, "num_layers": 5}
FAMILIES: dict[str, dict[str, Any]] = {  # no tensor size divides the vocabularies, no pipeline size the layers
    "qwen2 tied": {"tied": True, "vocab_size": 131},
    "qwen2 untied": {"tied": False, "vocab_size": 133},
    "qwen3": {"tied": False, "vocab_size": 131, "family": "qwen3"},
    "llama": {"tied": True, "vocab_size": 131, "family": "llama", "num_kv_heads": 2},  # fewer than tensor ranks
    "mistral": {"tied": False, "vocab_size": 131, "family": "mistral", "head_dim": 64},  # wider than hidden / heads
}
LAYOUTS = {
    "TP1": {},
    "TP2": {"tensor": 2},
    "TP4": {"tensor": 4},
    "PP2": {"pipeline": 2},
    "PP2 VPP2": {"pipeline": 2, "virtual_pipeline": 2},
    "TP2 PP2": {"tensor": 2, "pipeline": 2},
    "TP2 PP2 VPP2": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2},
}
EIGHT = {  # Megatron would need eight processes
    "TP4 PP2": {"tensor": 4, "pipeline": 2},
    "TP4 PP2 VPP2": {"tensor": 4, "pipeline": 2, "virtual_pipeline": 2},
}
CONVERTED = ("TP1", "TP2 PP2 VPP2")  # layouts to convert to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model of each family and convert it to every layout."""
    folder = tmp_path_factory.mktemp("conversion")
    for number, (family, options) in enumerate(FAMILIES.items()):
        model = save_tiny_model(folder / family / "model", seed=number, **SIZES | options)
        for layout, sizes in (LAYOUTS | EIGHT).items():
            to_megatron(model, folder / family / layout, sizes)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, Any]:
    """Load the conversions with Megatron and return the results. Leaves checkpoints of runs in `folder`."""
    return run_distributed(Path(__file__).with_name("megatron_worker.py"), 4, folder) or {}


def to_megatron(source: Path, target: Path, layout: dict[str, int], dtype: torch.dtype = torch.float32) -> None:
    hf_to_megatron(source, target, Layout(**layout), dtype=dtype, processes=1, progress=lambda _: None)


def to_hf(source: Path, target: Path, *, like: Path | None = None, max_shard_size: str = "5GB") -> Path:
    megatron_to_hf(
        source,
        target,
        like=like,
        dtype=None,
        max_shard_size=max_shard_size,
        processes=1,
        progress=lambda _: None,
    )
    return target


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for file in files for name, tensor in file.items()}


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", LAYOUTS | EIGHT)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(folder: Path, tmp_path: Path, family: str, layout: str) -> None:
    model = folder / family / "model"
    back = to_hf(folder / family / layout, tmp_path / "hf", max_shard_size="200KB")
    assert same(back, model) and len(list(back.glob("*.safetensors"))) > 2
    assert {p.name for p in back.iterdir() if "safetensors" not in p.name} == {
        p.name for p in model.iterdir() if "safetensors" not in p.name
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("converted", CONVERTED)
@pytest.mark.parametrize("family", FAMILIES)
def test_megatron_loads_it_under_any_layout(loaded: dict[str, Any], family: str, converted: str, layout: str) -> None:
    assert loaded[f"{family}: {converted} -> {layout}"]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "TP1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_runs_checkpoint_becomes_the_model(
    folder: Path, loaded: dict[str, Any], tmp_path: Path, family: str, layout: str
) -> None:
    back = to_hf(folder / family / "runs" / layout / "step-000003", tmp_path / "hf")
    assert same(back, folder / family / "model")


def test_what_was_converted_is_the_model_that_transformers_has(folder: Path, tmp_path: Path) -> None:
    back = to_hf(folder / "qwen3" / "TP2 PP2", tmp_path / "hf")
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        found, expected = (load_reference(path)(tokens).logits for path in (back, folder / "qwen3" / "model"))
    assert torch.equal(found, expected)


def test_dtype_on_request(folder: Path, tmp_path: Path) -> None:
    model = folder / "llama" / "model"
    to_megatron(model, tmp_path / "megatron", {}, torch.bfloat16)
    back = weights(to_hf(tmp_path / "megatron", tmp_path / "hf"))
    assert all(torch.equal(back[name], tensor.bfloat16()) for name, tensor in weights(model).items())
    assert '"dtype": "bfloat16"' in (tmp_path / "hf" / "config.json").read_text()


@pytest.mark.parametrize("layout", ["TP4", "TP2 PP2 VPP2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_resharding(folder: Path, loaded: dict[str, Any], tmp_path: Path, family: str, layout: str) -> None:
    """Resharding keeps every tensor, also the optimizer's, and writes files for the ranks of the new layout."""
    source, target = folder / family / "runs" / "TP2" / "step-000003", tmp_path / "anew"
    reshard_megatron(source, target, Layout(**LAYOUTS[layout]), like=None, processes=1, progress=lambda _: None)
    before, after = Reader(source), Reader(target)
    assert before.tensors.keys() == after.tensors.keys() and any("exp_avg" in key for key in after.tensors)
    for key, tensor in before.tensors.items():
        whole = [0] * len(tensor.size), tensor.size
        assert torch.equal(before.read(key, *whole), after.read(key, *whole)), key
    assert {key: before.read_object(key) for key in before.objects} == {
        key: after.read_object(key) for key in after.objects
    }
    assert (target / "settings.json").read_bytes() == (source / "settings.json").read_bytes()
    assert {path.name for path in target.glob("__*")} == {f"__{rank}_0.distcp" for rank in range(4)}
    assert same(to_hf(target, tmp_path / "hf"), folder / family / "model")
