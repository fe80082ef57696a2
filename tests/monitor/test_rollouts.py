"""Completions recorded token by token: the content of the files, and which files a resumed run keeps."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

from megatron_rapo.monitor import RecordedCompletion, Recorder, read_lines, read_rollouts

RIGHT = RecordedCompletion(
    step=2,
    problem="sum-7",
    sample=1,
    prompt="1+1=",
    reference_answer="2",
    tokens=["\\boxed", "{2}", "</script>\u2028", "<eos>"],
    engine_logp=[-0.5, -0.25, -1.0, 0.0],
    trainer_logp=[-0.25, -0.25, -2.0, 0.0],
    reference_logp=[-1.25, -0.25, -2.5, -0.125],
    advantage=0.75,
    phi=1.0,
    reward=0.9,
    terms={"correctness": 1.0, "length": -0.1},
    verdict="correct",
    answer="2",
    truncated=False,
    in_loss=True,
)


def steps(folder: Path) -> list[int]:
    return [step for step, _ in read_rollouts(folder)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.rollouts(2, [RIGHT, replace(RIGHT, sample=2, reference_logp=None, answer=None)])
    [(step, path)] = read_rollouts(tmp_path)
    assert (step, path) == (2, tmp_path / "rollouts/step-000002.jsonl.gz")
    first, second = read_lines(path)
    assert first == asdict(RIGHT)
    assert second == first | {"sample": 2, "reference_logp": None, "answer": None}
    assert RIGHT.log_rho() == [-1.0, 0.0, -0.5, -0.125] and RIGHT.logprob_gap() == [-0.25, 0.0, 1.0, 0.0]
    assert replace(RIGHT, reference_logp=None).log_rho() == []
    assert replace(RIGHT, stale_tokens=2).logprob_gap() == [1.0, 0.0]  # of the others the engine had other weights


def test_numbers_that_json_has_not_are_null_and_others_are_rounded(tmp_path: Path) -> None:
    numbers = [math.nan, -math.inf, -1.234567891, 1e-9]
    with Recorder(tmp_path) as recorder:
        recorder.rollouts(1, [replace(RIGHT, trainer_logp=numbers)])
    [(_, path)] = read_rollouts(tmp_path)
    assert read_lines(path)[0]["trainer_logp"] == [None, None, -1.23457, 0.0]


def test_a_resumed_run_has_none_of_later_steps(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        for step in (1, 10, 20, 1_000_000):
            recorder.rollouts(step, [replace(RIGHT, step=step)])
    (tmp_path / "rollouts/step-000030.jsonl.gz.partial").write_bytes(b"killed")
    (tmp_path / "rollouts/step-mine.jsonl.gz").write_bytes(b"somebody's")
    assert steps(tmp_path) == [1, 10, 20, 1_000_000]
    with Recorder(tmp_path, resume_step=10) as recorder:
        assert steps(tmp_path) == [1, 10]
        recorder.rollouts(20, [RIGHT])
    assert steps(tmp_path) == [1, 10, 20]


def test_the_same_completions_are_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in "ab":
        with Recorder(tmp_path / name) as recorder:
            recorder.rollouts(2, [RIGHT])
        written.append((tmp_path / name / "rollouts/step-000002.jsonl.gz").read_bytes())
    assert written[0] == written[1]
