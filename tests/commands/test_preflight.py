"""What the command says, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.cli import main

GIB = 2**30


def run(run_file: Path, *arguments: str) -> int:
    return main(["preflight", str(run_file), *arguments])


def found(run_file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    run(run_file, *arguments, "--json")
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_a_run_that_fits(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_file, "--gpus", "16", "--gpu-memory-gib", "80") == 0
    said = capsys.readouterr().out
    for words in ("the trainer, stage 0", "1,904,057,344", "KV cache", "its micro-batches", "H100 SXM", "fits, with"):
        assert words in said
    assert max(map(len, said.splitlines())) <= 120


def test_bytes_by_hand(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of the model on each GPU, of which four are data-parallel; the engine has all of it."""
    states = found(run_file, capsys, "--gpus", "16")["states"]
    numel = 1_904_057_344
    for state in ("rollout", "training"):
        parts = states[state]["bytes"]
        assert parts["weights"] == 2 * numel and parts["gradients"] == 4 * numel
        assert parts["optimizer"] == 12 * numel // 4
        assert parts["engine weights"] == 2 * 7_615_616_512 and parts["KV cache"] == 16 * GIB
    assert "activations" not in states["rollout"]["bytes"]


def test_bytes_of_fp8_by_hand(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine's linears take a byte and a scale for each row; the trainer keeps its own, and two copies of them."""
    settings = ("precision.fp8=hybrid", "precision.bf16_layers_at_start=1", "rollout.fp8=true")
    chosen = [part for setting in settings for part in ("--set", setting)]
    parts = found(run_file, capsys, "--gpus", "16", *chosen)["states"]["training"]["bytes"]
    hidden, ffn = 3584, 18944
    rows = {"qkv": (28 + 2 * 4) * 128, "o": hidden, "gate and up": 2 * ffn, "down": hidden}
    layer = rows["qkv"] * hidden + hidden * hidden + 2 * ffn * hidden + hidden * ffn
    assert parts["FP8 copies of weights"] == 2 * 27 * layer // 4
    assert parts["weights"] == 2 * 1_904_057_344
    assert parts["engine weights"] == 28 * (layer + 4 * sum(rows.values())) + 2 * (7_615_616_512 - 28 * layer)


def test_a_dry_run(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two stages of 14 layers, of which the first has the embedding, the last the output layer and a norm."""
    assert run(run_file, "--gpus", "16", "--set", "parallel.pipeline=2", "--dry-run") == 0
    heads, ffn, hidden = 28 + 2 * 4, 18944, 3584
    layer = heads * 128 // 4 * (hidden + 1) + hidden * hidden // 4 + 3 * ffn // 4 * hidden + 2 * hidden
    stage = 14 * layer + 152064 // 4 * hidden
    said = capsys.readouterr().err
    assert said == f"dry run: Megatron builds {stage:,}, {stage + hidden:,} parameters, as counted\n"


def test_what_sleeps_and_what_is_away(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "memory.engine_sleep=true", "--set", "memory.offload_optimizer=true")
    content = found(run_file, capsys, "--gpus", "16", *settings)
    parts = {state: set(each["bytes"]) for state, each in content["states"].items()}
    assert parts["rollout"] == {"weights", "engine weights", "KV cache"}
    assert parts["resharding"] == {"weights", "engine weights", "bucket"}
    assert parts["training"] >= {"weights", "gradients", "optimizer", "activations"}
    assert not parts["training"] & {"engine weights", "KV cache"}
    assert content["host"]["bytes"]["optimizer"] == content["states"]["training"]["bytes"]["optimizer"]


def test_where_the_reference_is(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away, at_hand = (
        found(run_file, capsys, "--gpus", "16", "--set", f"memory.reference_on_device={value}")
        for value in ("false", "true")
    )
    assert away["host"]["bytes"]["reference"] == at_hand["states"]["scoring"]["bytes"]["reference"] > 0
    assert at_hand["host"]["bytes"].get("reference", 0) == 0 and "reference" not in away["states"]["scoring"]["bytes"]


def test_a_run_that_does_not_fit(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_file, "--gpus", "16", "--gpu-memory-gib", "56") == 1
    said = capsys.readouterr().out
    assert "does not fit: training by 3." in said
    remedies = [line.strip() for line in said.splitlines() if line.startswith("  would fit with ")]
    assert "would fit with --set memory.engine_sleep=true" in remedies
    assert "would fit with --set model.recompute=full" in remedies
    assert not any("distributed" in remedy for remedy in remedies)  # it is already
    setting = remedies[0].removeprefix("would fit with --set ")
    assert run(run_file, "--gpus", "16", "--gpu-memory-gib", "56", "--set", setting) == 0


def test_what_nothing_makes_fit(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_file, "--gpus", "16", "--gpu-memory-gib", "6") == 1
    assert "no one or two settings would make it fit" in capsys.readouterr().out


def test_suggestions_fit_and_are_in_order(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suggestions = found(run_file, capsys, "--gpus", "16", "--suggest")["suggestions"]
    seconds = [sum(each["seconds"].values()) for each in suggestions]
    assert len(suggestions) == 3 and seconds == sorted(seconds)
    assert all(each["most_bytes"] <= (0.9 * 80 - 4) * 2**30 for each in suggestions)
    for each in suggestions:
        options = [f"{name}={json.dumps(value)}" for name, value in each["settings"].items()]
        arguments = [word for option in options for word in ("--set", option.replace(chr(34), ""))]
        again = found(run_file, capsys, "--gpus", "16", *arguments)
        assert again["fits"] and again["seconds"] == each["seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "6"), "error: parallel: tensor=4 x pipeline=1 x context=1 = 4 does not divide the 6 processes; "),
        (
            ("--gpus", "16", "--set", "parallel.tensor=8"),
            "error: parallel.tensor=8: does not divide the model's num_he",
        ),
        (
            ("--gpus", "16", "--gpu-memory-gib", "4"),
            "error: --overhead-gib 4: leaves nothing of --gpu-memory-gib 4; lower the one, or raise the other.",
        ),
        (
            ("--gpus", "16", "--completion-tokens", "3073"),
            "error: --completion-tokens 3073: a mean above rollout.max_completion_tokens=3072; give at most 3072.",
        ),
    ],
)
def test_what_cannot_run(
    run_file: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(run_file, *arguments) == 2
    assert capsys.readouterr().err.startswith(message)
