"""The benchmark compares like with like: one loss and one gradient, whoever makes them; and a real peak of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_loss, memory
from benchmarks.bench_loss import BASE, GPU_SIZES, MEMORY_TARGET, SIDES, SIZES, Case
from benchmarks.environment import NO_GPU
from megatron_rapo.scoring.output_head import CHUNK_BYTES

FOLDER = Path(bench_loss.__file__).parent
RECORDED = FOLDER / "results" / "bench_loss_cpu.json"
SMALL = Case(tokens=50, vocab_size=301, hidden_size=16, dtype="float32", device="cpu", threads=1)


def loss_and_gradients(name: str) -> dict[str, torch.Tensor]:
    inputs = bench_loss.make_inputs(SMALL)
    loss = bench_loss.run_on(inputs, name)
    assert inputs.hidden_TD.grad is not None and inputs.weight_VD.grad is not None
    return {"loss": loss, "hidden": inputs.hidden_TD.grad, "weight": inputs.weight_VD.grad}


@pytest.mark.parametrize("name", SIDES)
def test_all_sides_of_a_quantity_make_the_same(name: str) -> None:
    side = SIDES[name]
    if side.package:
        pytest.importorskip(side.package)
    found, expected = loss_and_gradients(name), loss_and_gradients(f"naive-{side.quantity}")
    assert all(value.abs().max() > 1e-3 for value in expected.values())
    for key in ("loss", "hidden", "weight") if side.has_value else ("hidden", "weight"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6)


def test_quantities_differ() -> None:
    """So the comparison above tells them apart."""
    losses = [loss_and_gradients(f"naive-{name}")["loss"] for name in ("logp", "sampled", "forward_kl", "reverse_kl")]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 0.01


def test_peak_of_memory_already_freed() -> None:
    before = memory.reset_peak_bytes("cpu")
    torch.ones(64 * 2**20, dtype=torch.uint8)
    assert (memory.peak_bytes("cpu") - before) / 2**20 == pytest.approx(64, abs=4)
    assert (memory.reset_peak_bytes("cpu") - before) / 2**20 == pytest.approx(0, abs=4)


def test_memory_of_whole_logits_and_of_chunks() -> None:
    """In fresh processes, with logits twice as large as a chunk of them."""
    vocab_size = 20_000
    tokens = 2 * (CHUNK_BYTES // (4 * vocab_size))
    case = Case(tokens=tokens, vocab_size=vocab_size, hidden_size=4, dtype="float32", device="cpu", threads=1)
    result = bench_loss.measure_sides(case, [BASE, "ours-sampled", "ours-forward_kl"], repeats=1)
    peaks = {name: side["peak_extra_mib"]["median"] for name, side in result["sides"].items()}
    chunk_mib = CHUNK_BYTES / 2**20
    assert peaks["ours-sampled"] == pytest.approx(2 * chunk_mib, rel=0.1)
    assert peaks["ours-forward_kl"] == pytest.approx(3 * chunk_mib, rel=0.1)
    assert 3.9 * 2 * chunk_mib < peaks[BASE] < 5.1 * 2 * chunk_mib
    assert result["sides"]["ours-sampled"]["error_against_naive-sampled"] < 1e-5
    assert all(side[figure]["min"] > 0 for side in result["sides"].values() for figure in ("wall_s", "cpu_s"))


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = Case(tokens=10**6, vocab_size=10**6, hidden_size=4, dtype="float32", device="cpu", threads=1)
    monkeypatch.setitem(SIDES, "liger-logp", SIDES["liger-logp"]._replace(package="no_such_package"))
    result = bench_loss.measure_sides(huge, [BASE, "liger-logp"], repeats=1)
    assert result["sides"] == {}
    assert result["not_measured"]["liger-logp"] == "no_such_package is not installed"
    assert result["not_measured"][BASE].startswith("needs about 18626 GiB, and a fifth of the ")


def case_with(peak: float, sampled: float, exact: float, size: tuple[int, int, int] = SIZES[0]) -> dict[str, Any]:
    """A result whose ratios are these."""

    def side(peak: float, time: float) -> dict[str, Any]:
        ratios = {"peak_extra_mib": peak, "wall_s": time, "cpu_s": time}
        return {figure: {"median": ratio, f"of_{BASE}": ratio} for figure, ratio in ratios.items()}

    return {
        **dict(zip(("tokens", "vocab_size", "hidden_size"), size, strict=True)),
        "dtype": "float32",
        "threads": 1,
        "sides": {BASE: side(1, 1), "ours-sampled": side(peak, sampled), "ours-forward_kl": side(peak, exact)},
        "not_measured": {},
    }


@pytest.mark.parametrize(
    ("case", "missed"),
    [
        (case_with(0.12, 1.4, 3.0), set()),
        (case_with(0.13, 1.4, 3.0), {("ours-sampled", "peak_extra_mib"), ("ours-forward_kl", "peak_extra_mib")}),
        (case_with(0.12, 1.41, 3.0), {("ours-sampled", "wall_s")}),
        (case_with(0.12, 1.4, 3.1), {("ours-forward_kl", "wall_s")}),
        (case_with(0.9, 1.4, 3.0, size=SIZES[1]), set()),  # no target for the memory there
        (
            case_with(0.13, 1.4, 3.0, GPU_SIZES[0]),
            {(side, "peak_extra_mib") for side in ("ours-sampled", "ours-forward_kl")},
        ),
    ],
)
def test_check(
    case: dict[str, Any], missed: set[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_loss, "measure_sides", lambda *_: case)
    assert bench_loss.main(["--size", "1,1,1", "--check"]) == bool(missed)
    printed = capsys.readouterr()
    targets = json.loads(printed.out)["targets"]
    assert len(targets) == (2 if case["tokens"] == SIZES[1][0] else 4)
    assert {(target["side"], target["figure"]) for target in targets if not target["met"]} == missed
    assert printed.err.count("missed: ") == len(missed)
    assert bench_loss.main(["--size", "1,1,1"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_loss.main(["--device", "cuda"])
    assert ended.value.code == NO_GPU
    assert capsys.readouterr().err.startswith("--device cuda: needs a GPU, and torch ")


def test_check_of_nothing_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_loss, "measure_sides", lambda *_: case_with(0, 0, 0) | {"sides": {}})
    assert bench_loss.main(["--size", "1,1,1", "--check"]) == 1
    assert "nothing to check" in capsys.readouterr().err


def test_recorded_result_is_the_readme_s_and_meets_the_targets() -> None:
    result = json.loads(RECORDED.read_text())
    assert bench_loss.table(result) in (FOLDER / "README.md").read_text()
    sizes = {tuple(case[key] for key in ("tokens", "vocab_size", "hidden_size")) for case in result["cases"]}
    assert sizes == set(SIZES)
    assert result["targets"] == [target for case in result["cases"] for target in bench_loss.targets_of(case)]
    assert all(target["met"] for target in result["targets"])
    assert min(target["at_most"] for target in result["targets"]) == MEMORY_TARGET
    for case in result["cases"]:
        for name, side in case["sides"].items():
            assert side.get(f"error_against_naive-{SIDES[name].quantity}", 0) < 1e-5, name
