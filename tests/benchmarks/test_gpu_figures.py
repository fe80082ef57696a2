"""What the GPU benchmarks make of their measurements, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import reshard, training
from benchmarks.gpu.flops import matmul_numel, training_flops
from benchmarks.gpu.settings import run_config
from benchmarks.models import QWEN2_1B
from megatron_rapo.models import ModelShape, read_shape
from megatron_rapo.preflight.memory import engine_numel, states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the 1B model's config.json."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(QWEN2_1B))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelShape:
    return read_shape(folder)


def test_the_model_has_1b_parameters_and_what_fp8_wants(model: ModelShape) -> None:
    assert engine_numel(model, 1) == pytest.approx(1.03e9, rel=0.01)
    assert matmul_numel(model) == pytest.approx(engine_numel(model, 1), rel=0.001)  # tied: no biases, no norms
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    assert all(size % 128 == 0 for size in (model.hidden_size, model.ffn_hidden_size, q + 2 * kv))


def test_speed(model: ModelShape) -> None:
    """At 40 % of an H100's peak."""
    assert training.FULL.lengths == [1024] * 32
    seconds = training_flops(model, training.FULL.lengths) / (0.4 * 989e12)
    found = training.speed(model, training.FULL, seconds, "NVIDIA H100 80GB HBM3")
    assert found == {"tokens_per_s": round(32768 / seconds), "tflops_per_s": 395.6, "mfu": 0.4}
    assert training.speed(model, training.FULL, seconds, "A card")["mfu"] is None


def test_memory_is_compared_without_an_engine(folder: Path, model: ModelShape) -> None:
    config = run_config(folder, "torch", tokens_per_microbatch=8192)
    said = states(model, config, replicas=1, layers="torch")["training"]
    own = said.total - said.parts["engine weights"] - said.parts["KV cache"]
    found = training.memory(model, config, {"training": own // 2})
    assert found["training"]["preflight_mib"] == round(own / 2**20, 1)
    assert found["training"]["preflight_of_measured"] == 2.0


def case(precision: str, step_s: float, mfu: float, of_measured: float) -> dict[str, Any]:
    memory = {"training": {"preflight_of_measured": of_measured}}
    return {"precision": precision, "step_s": step_s, "mfu": mfu, "memory": memory}


CASES = [
    case("torch", 2.0, 0.2, 1.0),
    case("transformer_engine", 1.0, 0.4, 1.1),
    case("fp8 delayed", 0.5, 0.8, 0.9),
    case("fp8 tensorwise", 0.8, 0.5, 1.2),
    {"precision": "fp8 blockwise", "failed": "RuntimeError: woe"},
]


def test_targets_of_training() -> None:
    found = training.summary(CASES, "NVIDIA H100 80GB HBM3")
    assert found["fp8_speedups"] == {"fp8 delayed": 2.0, "fp8 tensorwise": 1.25}
    assert {target["figure"]: target["met"] for target in found["targets"]} == {
        "fp8 blockwise runs": False,
        "mfu in bfloat16": True,
        "speed of fp8 tensorwise by bfloat16's": True,
        "preflight of measured memory, training, torch": True,
        "preflight of measured memory, training, transformer_engine": True,
        "preflight of measured memory, training, fp8 delayed": True,
        "preflight of measured memory, training, fp8 tensorwise": False,
    }
    slower = [CASES[0], CASES[1] | {"mfu": 0.39}, CASES[3] | {"step_s": 0.9}]
    missed = [t["figure"] for t in training.summary(slower, "NVIDIA H200")["targets"] if not t["met"]]
    assert missed[:2] == ["mfu in bfloat16", "speed of fp8 tensorwise by bfloat16's"]


def test_no_target_of_speed_on_another_card_and_no_speedup_without_bfloat16() -> None:
    figures = [target["figure"] for target in training.summary(CASES, "NVIDIA A100-SXM4-80GB")["targets"]]
    assert not any("mfu" in figure or "speed" in figure for figure in figures)
    assert training.summary([CASES[2]], "NVIDIA H100")["fp8_speedups"] == {}


TURNS = {  # two, seconds
    "ours": {"transfer": [1.0, 3.0], "engine": [0.0, 0.0], "total": [1.5, 4.0]},
    "ours and proof": {"transfer": [1.0, 3.0], "proof": [1.0, 2.0], "engine": [0.0, 0.0], "total": [3.0, 6.0]},
    "memcpy": {"total": [1.0, 2.0]},
}


def test_figures_of_resharding() -> None:
    found = reshard.summary(TURNS, nbytes=3 * 10**9)
    assert found["seconds"]["ours"] == {"transfer": 2.0, "engine": 0.0, "total": 2.75}
    assert (found["transfer_gb_per_s"], found["memcpy_gb_per_s"]) == (1.5, 2.0)
    assert found["ratios"] == {
        "transfer of memcpy": (1.0 + 1.5) / 2,
        "resharding of memcpy": (1.5 + 2.0) / 2,
        "resharding and proof of memcpy": 3.0,
        "resharding and proof of resharding": (2.0 + 1.5) / 2,
    }


def test_targets_of_resharding() -> None:
    memory = reshard.compared({"weights": 100, "KV cache": 200}, {"weights": 100, "KV cache": 230})
    result = reshard.summary(TURNS, nbytes=3 * 10**9) | {"engine_memory": memory}
    assert {target["figure"]: target["met"] for target in reshard.targets_of(result)} == {
        "transfer of memcpy": True,
        "preflight of measured memory, engine, weights": True,
        "preflight of measured memory, engine, KV cache": False,
    }
    result["ratios"]["transfer of memcpy"] = 1.51
    assert not reshard.targets_of(result)[0]["met"]
