"""Both sides do the same work, and the figures that are made of what it took, by hand."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_trl
from benchmarks.bench_trl import Runner, Turn
from benchmarks.grpo.case import CASES, PROMPT_TOKENS, Case, Work, log_normal
from benchmarks.grpo.trl_side import PrescribedLengths, parts_of
from benchmarks.launch import launch
from benchmarks.models import CPU_SIZES, write_model
from megatron_rapo.data import load_tokenizer
from megatron_rapo.models import read_shape
from megatron_rapo.models.parameter_map import hf_shapes
from tests.patience import HANG_S

CASE = Case(model="1M", lengths="log-normal", prompts=2, completions=2, median=4)  # 2, 4, 4 and 32 tokens or so


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("trl")
    write_model(folder / "model", CPU_SIZES["1M"], tokenizer=True)
    found = Work(case=CASE, folder=folder, variant="2 threads", steps=3)
    found.write_problems()
    return found


@pytest.mark.parametrize(("side", "package"), [("ours", "vllm"), ("trl", "trl")])
def test_each_side_samples_the_tokens_of_the_case(side: str, package: str, work: Work) -> None:
    """In a real run, which is refused where the tokens are others."""
    pytest.importorskip(package)
    turn = bench_trl.take_turn((side, work.variant), work)
    assert len(turn.parts_s) == len(turn.cpu_s) == work.steps - bench_trl.WARM_UP
    assert all(parts.keys() == {"rollout", "score", "train", "other"} for parts in turn.parts_s)
    assert all(min(parts["rollout"], parts["score"], parts["train"]) > 0 for parts in turn.parts_s)


def test_processes_that_fail_or_take_too_long_say_so() -> None:
    with pytest.raises(RuntimeError, match=r"json.tool, exit status 2: \.\.\.(?s:.)*no-such-file"):
        launch("json.tool", ["no-such-file"], processes=1, threads=1, timeout_s=HANG_S)
    with pytest.raises(RuntimeError, match=r"http.server, exit status none after 1 s"):
        launch("http.server", ["0"], processes=1, threads=1, timeout_s=1.0)


def test_log_normal_lengths() -> None:
    lengths = log_normal(64, 64)
    assert (min(lengths), max(lengths)) == (8, 512)
    assert statistics.median(lengths) == pytest.approx(64, abs=1)
    logs = torch.tensor(lengths).double().log()
    assert float(logs.mean()) == pytest.approx(4.159, abs=0.01)  # ln 64
    assert lengths != sorted(lengths) and lengths == log_normal(64, 64)


def test_cases_give_both_lengths_at_every_size() -> None:
    assert {(case.model, case.lengths) for case in CASES} == {
        (model, lengths) for model in CPU_SIZES for lengths in bench_trl.TARGETS
    }
    for case in CASES:
        most = 1 if case.lengths == "equal" else 8
        assert case.longest == most * case.median
        assert PROMPT_TOKENS + case.longest <= CPU_SIZES[case.model]["max_position_embeddings"]


@pytest.mark.parametrize(("size", "parameters"), [("1M", 1e6), ("10M", 10e6), ("135M", 134.5e6)])
def test_models_are_as_large_as_their_names(size: str, parameters: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CPU_SIZES[size]))
    numel = sum(torch.Size(shape).numel() for shape in hf_shapes(read_shape(tmp_path)).values())
    assert numel == pytest.approx(parameters, rel=0.03)


def test_prompts_have_their_number_of_tokens(work: Work) -> None:
    tokenizer = load_tokenizer(work.model)
    problems = CASE.problems(work.vocab_size)
    assert len(problems) == CASE.prompts
    for text in problems:
        assert len(tokenizer(f"{text}\n")["input_ids"]) == len(tokenizer(text)["input_ids"]) == PROMPT_TOKENS


def test_a_sequence_ends_when_it_should_and_not_before() -> None:
    """Two rows, of one and two tokens, of a vocabulary of four in which 1 ends a sequence."""
    processor = PrescribedLengths([1, 2], eos=1)
    first = processor(torch.zeros(2, PROMPT_TOKENS), torch.ones(2, 4))
    second = processor(torch.zeros(2, PROMPT_TOKENS + 1), torch.ones(2, 4))
    inf = float("inf")
    assert first.tolist() == [[-inf, 0.0, -inf, -inf], [1.0, -inf, 1.0, 1.0]]
    assert second[1].tolist() == [-inf, 0.0, -inf, -inf]


def test_parts_of_trl_s_profile() -> None:
    profile = {"_prepare_inputs": 5.0, "transformers.generate": 3.0, "_calculate_rewards": 0.5, "compute_loss": 2.0}
    assert parts_of(profile, 9.0) == {"rollout": 3.0, "score": 1.5, "train": 4.0, "other": 0.5}


def turn(*steps_s: float) -> Turn:
    return Turn([{"rollout": s / 2, "score": s / 4, "train": s / 4, "other": 0.0} for s in steps_s], list(steps_s))


@pytest.fixture
def summary() -> dict[str, Any]:
    """Two turns of two steps; TRL has a faster and a slower variant."""
    taken: dict[Runner, list[Turn]] = {
        ("ours", "DP2"): [turn(1.0, 1.0), turn(2.0, 2.0)],
        ("trl", "2 threads"): [turn(2.0, 4.0), turn(4.0, 4.0)],
        ("trl", "2 processes"): [turn(8.0, 8.0), turn(8.0, 8.0)],
    }
    return bench_trl.summary(replace(CASE, lengths="equal"), taken, {("trl", "vLLM"): "no such thing"})


def test_figures_by_hand(summary: dict[str, Any]) -> None:
    ours, fast, _ = summary["sides"]
    assert (ours["step_s"], ours["fastest_s"], ours["slowest_s"], ours["cpu_s"]) == (1.5, 1.0, 2.0, 1.5)
    assert ours["tokens_per_s"] == round(16 / 1.5, 1)  # four completions of four tokens
    assert ours["parts_s"] == {"rollout": 0.75, "score": 0.375, "train": 0.375, "other": 0.0}
    assert fast["step_s"] == 4.0
    assert summary["comparisons"] == [  # (3 / 1 + 4 / 2) / 2, and nobody was measured in bfloat16
        {"dtype": "float32", "ours": "DP2", "trl": "2 threads", "times_as_fast": 2.5, "cpu_of_trl": 0.417}
    ]
    assert summary["not_measured"] == [{"side": "trl", "variant": "vLLM", "why": "no such thing"}]


def test_targets(summary: dict[str, Any]) -> None:
    for lengths, times_as_fast, met in [
        ("equal", 1.0, True),
        ("equal", 0.99, False),
        ("log-normal", 2.0, True),
        ("log-normal", 1.99, False),
    ]:
        summary["lengths"], summary["comparisons"][0]["times_as_fast"] = lengths, times_as_fast
        [target] = bench_trl.targets_of(summary)
        assert (target["case"], target["met"]) == (f"1M, {lengths}, float32", met)


def test_table(summary: dict[str, Any]) -> None:
    lines = bench_trl.table([summary]).splitlines()
    assert lines[2].startswith("| 1M, equal | float32 | 11 (DP2) | 4 (2 threads) | 2.50 |")
    assert "| trl: vLLM | - |" in lines
