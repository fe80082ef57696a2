"""The parallel layout does not change the mathematics: one rollout, every layout, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.types import TrainingSequence
from tests.launch import run_distributed
from tests.models import save_tiny_qwen2
from tests.runs import recorded_rollout

WORKER = Path(__file__).with_name("layout_worker.py")
TENSOR, PIPELINE, CONTEXT = {"tensor": 2}, {"pipeline": 2}, {"context": 2}
# name -> (processes, model, sections of the configuration)
LAYOUTS: dict[str, tuple[int, str, dict[str, dict[str, Any]]]] = {
    "TP1 untied": (1, "untied", {}),
    "TP1 tied": (1, "tied", {}),
    "TP2 untied": (2, "untied", {"parallel": TENSOR}),
    "TP2 tied": (2, "tied", {"parallel": TENSOR}),
    "TP2 SP tied": (2, "tied", {"parallel": TENSOR | {"sequence": True}}),
    "PP2 untied": (2, "untied", {"parallel": PIPELINE}),
    "PP2 tied": (2, "tied", {"parallel": PIPELINE}),
    "PP2 VPP2 tied": (2, "tied", {"parallel": PIPELINE | {"virtual_pipeline": 2}}),
    "DP2 untied": (2, "untied", {}),
    "DP2 distributed optimizer tied": (2, "tied", {"optimizer": {"distributed": True}}),
    "CP2 untied": (2, "untied", {"parallel": CONTEXT}),
    "TP2 recompute full tied": (2, "tied", {"parallel": TENSOR, "model": {"recompute": "full"}}),
    "TP2 recompute selective tied": (2, "tied", {"parallel": TENSOR, "model": {"recompute": "selective"}}),
    "TP2 PP2 untied": (4, "untied", {"parallel": TENSOR | PIPELINE}),
    "TP2 PP2 tied": (4, "tied", {"parallel": TENSOR | PIPELINE}),
    "TP2 CP2 SP tied": (4, "tied", {"parallel": TENSOR | CONTEXT | {"sequence": True}}),
    "PP2 CP2 untied": (4, "untied", {"parallel": PIPELINE | CONTEXT}),
    "TP2 DP2 distributed optimizer untied": (4, "untied", {"parallel": TENSOR, "optimizer": {"distributed": True}}),
}
BF16 = {"precision": {"dtype": "bfloat16"}, "parallel": TENSOR, "optimizer": {"distributed": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shape = {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "gain": 0.7}
    save_tiny_qwen2(folder / "untied", tied=False, vocab_size=131, seed=1, **shape)  # not divisible by 2
    save_tiny_qwen2(folder / "tied", tied=True, vocab_size=128, seed=2, **shape)
    return folder


@pytest.fixture(scope="module")
def rollouts(folder: Path) -> dict[str, list[TrainingSequence]]:
    return {name: recorded_rollout(folder / name) for name in ("untied", "tied")}


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for nproc in (1, 2, 4):
        layouts = {name: rest for name, (n, *rest) in LAYOUTS.items() if n == nproc}
        if nproc == 4:
            layouts["TP2 DP2 bf16 tied"] = ["tied", BF16]
        found |= run_distributed(WORKER, nproc, folder, json.dumps(layouts), timeout_s=240) or {}
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_transformers(results: dict[str, Any], rollouts: dict[str, Any], layout: str) -> None:
    found, rollout = results[layout]["logits"], rollouts[LAYOUTS[layout][1]]
    assert found["error"] < 1e-5
    assert found["tokens"] == sum(len(sequence.token_ids) for sequence in rollout)  # each once


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_equal_transformers(results: dict[str, Any], rollouts: dict[str, Any], layout: str) -> None:
    sampled = sum(len(sequence.engine_logprobs) for sequence in rollouts[LAYOUTS[layout][1]])
    for whose in ("policy", "reference"):
        assert results[layout][whose]["error"] < 1e-5
        assert results[layout][whose]["tokens"] == 2 * sampled  # the whole rollout, and again in two parts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hf_weights_survive_the_round_trip_bit_by_bit(results: dict[str, Any], layout: str) -> None:
    assert results[layout]["round_trip"] is True


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("TP1")])
def test_training_is_the_same(results: dict[str, Any], layout: str) -> None:
    expected = results["TP1 tied" if layout.endswith(" tied") else "TP1 untied"]["steps"]
    found = results[layout]["steps"]
    for name in ("loss", "grad_norm", "entropy", "divergence", "surrogate"):
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-5), name
    for name in ("loss", "entropy"):
        assert found[1][name] == pytest.approx(expected[1][name], rel=1e-5), f"{name} after one update"
    assert expected[1]["loss"] < expected[0]["loss"] - 1e-3  # the update did something


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("TP1")])
def test_the_updated_weights_are_the_same(results: dict[str, Any], layout: str) -> None:
    errors = results[layout]["update_errors"]
    assert len(errors) == 4 * 12 + (2 if layout.endswith(" tied") else 3)  # layers, embedding, norm, output
    assert max(errors.values()) < 1e-4, max(errors.items(), key=lambda item: item[1])


def test_bf16_is_near_float32(results: dict[str, Any]) -> None:
    expected, found = results["TP1 tied"]["steps"], results["TP2 DP2 bf16 tied"]["steps"]
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.02)
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=0.05)
    assert found[2]["loss"] < found[0]["loss"]
