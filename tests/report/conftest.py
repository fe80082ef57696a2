"""Make two runs like `train` leaves them, one with hostile completions, and open their report in a browser."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_rapo.commands.report import Options, report
from megatron_rapo.monitor import RecordedCompletion, Recorder
from megatron_rapo.monitor.settings_history import record_settings
from tests.evaluation.known import right_of
from tests.report.browser import Page, browser, program
from tests.runs import tiny_config

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!--<script>",
    "]]>\"'`${window.hacked = 3}&lt;b&gt;",
    "\x00\x1b[31m\x7f\u2028\u2029\u202egnp.exe\u2066\ufeff",
    "\ud800",
    "a\nb\tc\r",
)
COMPLETION = RecordedCompletion(
    step=1,
    problem="sum-1",
    sample=0,
    prompt="1 + 1 = ?",
    reference_answer="2",
    tokens=["It", " is ", "\\boxed", "{2}", "<eos>"],
    engine_logp=[-0.5, -0.25, -1.0, -0.125, 0.0],
    trainer_logp=[-0.75, -0.25, -1.0, -0.125, 0.0],
    reference_logp=[-1.75, -0.25, -0.5, -0.125, 0.0],
    advantage=0.5,
    phi=1.0,
    reward=1.0,
    terms={"correctness": 1.0, "format": 0.0},
    verdict="correct",
    answer="2",
    truncated=False,
    in_loss=True,
)


def hostile(step: int) -> RecordedCompletion:
    """Put markup, control characters and quotes into everything that a model or a data file can write."""
    return replace(
        COMPLETION,
        step=step,
        sample=1,
        problem=f"sum-{HOSTILE[0]}",
        prompt="".join(HOSTILE),
        reference_answer=HOSTILE[1],
        tokens=list(HOSTILE),
        engine_logp=[-0.5] * len(HOSTILE),
        trainer_logp=[-0.25] * len(HOSTILE),
        reference_logp=[-0.25, math.nan, *[-0.25] * (len(HOSTILE) - 2)],
        reward=0.0,
        verdict="wrong",
        answer=HOSTILE[3],
        stale_tokens=2,
    )


def scalars(step: int) -> dict[str, float]:
    right = step / 20
    return {
        "reward/mean": right,
        "reward/pass_rate": right,
        "reward/wrong": 1 - right,
        "reward/no_answer": 0.0,
        "reward/unparsable": 0.0,
        "reward/timeout": 0.0,
        "policy/entropy": 1 / step,
        "policy/kl": math.nan if step == 5 else 0.01 * step**2,
        "rollout/completion_tokens": 40.0 + step,
        "rollout/logprob_gap_mean": 1e-7 * step,
        "rollout/logprob_gap_max": 1e-5,
        "reshard/transfer_gb_per_s": 2.0,
        "reshard/transfer_s": 0.02,
        "reshard/engine_s": 0.0,
        "reshard/proof_s": 0.01,
        "throughput/tokens_per_s": 3000.0,
        "optimizer/lr": 5e-6,
        "seconds/rollout": 2.0,
        "seconds/train": 3.0,
        "seconds/step": 5.5,
    }


def write_run(folder: Path, *, steps: int, lr: float) -> Path:
    with Recorder(folder) as recorder:
        recorder.log(0, {"eval/pass@1": 0.25, "eval/pass@4": 0.5})
        for step in range(1, steps + 1):
            first = {"seconds/reshard": 0.5, "reshard/proof_s": 0.03} if folder.name == "two" else {}
            recorder.log(step, first | scalars(step) | first)
            if step % 10 == 0:
                completions = [replace(COMPLETION, step=step, sample=i, problem=f"sum-{i}") for i in range(3)]
                recorder.rollouts(step, [*completions, hostile(step)])
    config = tiny_config(Path("model"), folder, optimizer={"lr": lr}, run={"steps": steps})
    record_settings(
        folder, config.model_copy(update={"run": config.run.model_copy(update={"timeout_s": 600.0})}), step=0
    )
    record_settings(folder, config, step=2)
    passed = {f"pass@{k}": {"before": 0.25, "after": 0.75} for k in (1, 4)}
    (folder / "summary.json").write_text(json.dumps(passed | {"seconds": {"train": 1.0}}))
    (folder / "machine.json").write_text(json.dumps({"copy_gb_per_s": 8.0, "device": "CPU", "processes": 2}))
    for step, right in ((0, (4, 2, 1)), (1, (5, 2, 1)), (steps, (8, 4, 0))):
        right_of(8, *right, k=(1, 8), model="runs/mine").save(folder / f"evaluations/step-{step:06d}.json")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "one", steps=20, lr=1e-3), write_run(folder / "two", steps=10, lr=1e-4)]


@pytest.fixture(scope="session")
def base(runs: list[Path]) -> Path:
    path = runs[0].parent / "base.json"
    right_of(8, 4, 2, 1, k=(1, 8)).save(path)
    return path


@pytest.fixture(scope="session")
def written(runs: list[Path], base: Path) -> Path:
    """Open the report of both runs."""
    path = runs[0].parent / "report.html"
    report(runs, Options(output=path, evaluations=[base], rollouts_mib=8.0))
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Page]:
    if program() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with browser() as page:
        yield page
