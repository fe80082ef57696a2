"""The whole loop from the command line, on two processes: real Megatron-Core, real vLLM, real math-verify."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.evaluation.scores import Scores
from megatron_rapo.monitor import SCALARS, read_lines, read_rollouts
from megatron_rapo.monitor.settings_history import changes, read_history
from megatron_rapo.monitor.tensorboard_writer import tag
from tests.patience import COLLECTIVE_S, HANG_S
from tests.short_runs import ROOT, finish, kill_tree, metrics, ranks_after_first_step, same_run, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Three steps without a break: the folder and the output."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(start(folder))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two steps, then the third by another start with --resume; evaluated after every step and profiled at the second,
    which changes nothing. The first start goes on with a run that was ended before its first checkpoint and saves by
    time, the second finds the same problems at another path."""
    folder, evaluated = tmp_path_factory.mktemp("resumed"), ("--set", "evaluation.every_steps=1")
    (folder / "run").mkdir()
    (folder / "run/metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    by_time = ("--set", "checkpoint.every_steps=0", "--set", "checkpoint.every_minutes=1e-9")
    output = finish(start(folder, *evaluated, *by_time, "--profile", "2", "--resume", steps=2))
    assert f"{folder}/run: has no checkpoint yet, so the run begins again at step 1" in output
    assert "saving step 1 (checkpoint.every_minutes)" in output
    assert {path.name for path in (folder / "run/checkpoints").iterdir()} == {"latest", "step-000002"}
    moved = shutil.copy(ROOT / "examples/tiny/train.jsonl", folder / "moved.jsonl")
    return folder, finish(start(folder, *evaluated, "--resume", "--set", f"data.train={moved}"))


def test_settings_are_kept_from_step_to_step(resumed: tuple[Path, str]) -> None:
    changed = {each["name"]: each for each in changes(read_history(resumed[0] / "run"))}
    assert changed.keys() == {"checkpoint.every_steps", "checkpoint.every_minutes", "data.train", "run.steps"}
    assert changed["run.steps"] == {"step": 3, "name": "run.steps", "before": 2, "after": 3}


def test_metrics_are_complete_and_mean_something(whole: tuple[Path, str]) -> None:
    start, *rows = metrics(whole[0])
    of_evaluation = {"pass@1", "pass@4", "maj@4", "completion_tokens", "truncated"}
    assert start.keys() == {"step", *(f"eval/{name}" for name in of_evaluation)} and start["step"] == 0
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "eval/pass@1" in rows[2] and "eval/pass@1" not in rows[1]
    absent = {f"reshard/parity_{part}" for part in ("trainer_fp8", "engine_fp8", "kernels")}
    absent |= {"rollout/dropped_groups", "rollout/dropped_tokens"}  # they are carried
    for row in rows:
        of_stale = {"rollout/stale_logprob_gap"} if row["rollout/stale_tokens"] == 0 else set()
        assert SCALARS.keys() - row.keys() == absent | of_stale
        assert all(isinstance(value, (int, float)) for value in row.values())  # null would be a number not finite
        assert row["rollout/logprob_gap_max"] < 1e-4  # float32: the engine's weights are the trainer's, every step
        assert 0 < row["reshard/parity_mean"] <= row["reshard/parity_max"] < 1e-4
        assert row["reshard/proof_s"] > 0 and row["reshard/transfer_s"] > 0
        assert 0.9 <= row["reference/phi_mean"] <= 1.0
        trained_on = (row["reference/phi_mean"] - 0.9) / 0.1  # the mean reward of the 4 groups
        left_out = 4 * row["rollout/groups_replaced"]
        right = 4 * ((4 + left_out) * row["reward/mean"] - 4 * trained_on)  # among the 4 completions of each left out
        assert right == pytest.approx(round(right), abs=1e-3) and 0 <= round(right) <= 4 * left_out
        assert row["optimizer/grad_norm"] > 0 and row["optimizer/lr"] == 2e-4
        phases = sum(value for name, value in row.items() if name.startswith("seconds/") and name != "seconds/step")
        assert 0.95 * row["seconds/step"] <= phases <= 1.01 * row["seconds/step"]
        objective = row["policy/surrogate"] - row["policy/kl_cost"] + row["policy/entropy_bonus"]
        assert row["policy/loss"] == pytest.approx(-objective, abs=1e-6)  # an exact KL: value is what is differentiated
        assert row["policy/kl_cost"] == pytest.approx(0.02 * row["policy/kl"]) and row["policy/kl"] > 0


@pytest.mark.parametrize("split", ["", "/low_reward", "/high_reward"])
def test_estimators_are_watched_in_all_and_by_reward(whole: tuple[Path, str], split: str) -> None:
    for row in metrics(whole[0])[1:]:
        found = {
            name.removeprefix("estimator/").removesuffix(split): value
            for name, value in row.items()
            if name.startswith("estimator/") and name.count("/") == 1 + bool(split) and name.endswith(split)
        }
        assert found["log_rho_p01"] <= found["log_rho_p50"] <= found["log_rho_p99"]
        assert found["log_rho_p01"] < found["log_rho_p99"]
        assert found["log_rho_capped"] == 0  # an exact KL has no ratio to cap
        assert 0 < found["rho_ess"] <= 1 and 0.9 < found["importance_ess"] <= 1 + 1e-6
        assert found["importance_capped"] <= 0.01
        assert found["kl"] > 0
        if row["step"] == 1 and split == "/high_reward":  # phi = 1, before training: the reference is the policy
            assert found["kl_gradient_share"] < 1e-4
        else:
            assert 0 < found["kl_gradient_share"] < 1


def test_the_divergence_is_the_mean_of_its_parts(whole: tuple[Path, str]) -> None:
    """All of it is of low or of high rewards."""
    for row in metrics(whole[0])[1:]:
        low, high = row["estimator/kl/low_reward"], row["estimator/kl/high_reward"]
        assert min(low, high) <= row["estimator/kl"] <= max(low, high)
        assert row["estimator/kl"] == pytest.approx(row["policy/kl"], rel=1e-6)


def test_groups_without_signal_are_replaced_by_those_of_the_next_prompts(whole: tuple[Path, str]) -> None:
    """4 prompts a step; what is missing is sampled by 2 engines, each of which takes as many prompts."""
    rows = metrics(whole[0])[1:]
    sampled = [round(4 * (1 + row["rollout/groups_replaced"])) for row in rows]
    without_signal = [round(n * row["reward/groups_without_signal"]) for n, row in zip(sampled, rows, strict=True)]
    assert sum(sampled[:2]) > 2 * 4  # the resumed run goes on beyond that
    for n, without in zip(sampled, without_signal, strict=True):
        assert n in (4, 6, 8, 10, 12) and (n == 4) == (without == 0)
    state = torch.load(whole[0] / "run/checkpoints/step-000002/common.pt", weights_only=False)["trainer"]
    order, carried = state["rollouts"]["order"], state["rollouts"]["begun"]
    assert (order["epoch"], order["position"]) == (0, sum(sampled[:2]) + 2) and len(carried) == 2


def test_groups_are_carried_from_step_to_step(whole: tuple[Path, str]) -> None:
    """Two a step, with what there is of them, which a checkpoint has too; the resumed run goes on with them."""
    rows = metrics(whole[0])[1:]
    assert [row["rollout/carried_groups"] for row in rows] == [2, 2, 2]
    assert rows[0]["rollout/stale_tokens"] == rows[0]["rollout/stale_steps"] == 0
    assert 0 < rows[2]["rollout/stale_tokens"] < 0.7 and rows[2]["rollout/stale_steps"] == 1
    # The weights have moved by a step, which is far more than engine and trainer differ by.
    assert rows[2]["rollout/stale_logprob_gap"] > 20 * rows[2]["rollout/logprob_gap_max"]
    state = torch.load(whole[0] / "run/checkpoints/step-000002/common.pt", weights_only=False)["trainer"]
    completions = [c for group in state["rollouts"]["begun"] for c in group["completions"]]
    assert {group["step"] for group in state["rollouts"]["begun"]} == {2}
    assert sum(len(c["token_ids"]) for c in completions) == 8 * rows[1]["rollout/carried_tokens"] > 0  # int32, in hex
    assert {version for c in completions for version, _ in c["spans"]} == {1}
    assert not all(c["finished"] for c in completions)


def test_tensorboard_shows_the_same(whole: tuple[Path, str]) -> None:
    events = EventAccumulator(str(whole[0] / "run/tensorboard"))
    events.Reload()
    for row in metrics(whole[0])[1:]:
        for name, value in row.items():
            if name.startswith(("policy/", "estimator/", "rollout/", "reshard/")):
                (found,) = [e.value for e in events.Scalars(tag(name)) if e.step == row["step"]]
                assert found == pytest.approx(value, rel=1e-6), name
    assert len(events.Tensors("samples/0")) == len(events.Tensors("histogram/completion_tokens")) == 3
    assert [event.step for event in events.Tensors("histogram/log_rho")] == [1, 2]  # where completions are recorded


def test_completions_are_written_token_by_token(whole: tuple[Path, str]) -> None:
    """Write of steps 1 and 2 the first four of the first prompt, the first two of the second."""
    run, rows = whole[0] / "run", metrics(whole[0])
    files = dict(read_rollouts(run))
    assert list(files) == [1, 2]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny/model")
    for step, path in files.items():
        completions = read_lines(path)
        assert [c["sample"] for c in completions] == [0, 1, 2, 3, 0, 1] and {c["step"] for c in completions} == {step}
        for c in completions:
            assert "".join(c["tokens"]) == tokenizer.decode(tokenizer("".join(c["tokens"]))["input_ids"])
            assert len(c["tokens"]) == len(c["engine_logp"]) == len(c["trainer_logp"]) == len(c["reference_logp"])
            gap = [abs(a - b) for a, b in zip(c["engine_logp"], c["trainer_logp"], strict=True)][c["stale_tokens"] :]
            assert max(gap, default=0) <= rows[step]["rollout/logprob_gap_max"] + 1e-5
            assert c["reward"] == c["terms"]["correctness"] + c["terms"]["format"]
            assert (c["verdict"] == "correct") == (c["reward"] == 1.0)
            if c["verdict"] == "correct":
                assert c["answer"] == c["reference_answer"]  # whole numbers
                if step == 1:  # phi = 1, before training: the reference is the policy
                    assert c["reference_logp"] == pytest.approx(c["trainer_logp"], abs=2e-5)


def test_summary_and_output_say_where_things_are(whole: tuple[Path, str]) -> None:
    folder, output = whole
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary.keys() >= {"pass@1", "pass@4", "checkpoint", "hf_export", "seconds"}
    assert 0 <= summary["pass@1"]["before"] <= summary["pass@4"]["before"] <= 1
    seconds = summary["seconds"]
    assert seconds["other"] <= 0.05 * sum(seconds.values())
    phases = {"launch", "build_trainer", "build_engine", "rollout", "verify", "score", "train", "reshard", "evaluate"}
    assert phases <= seconds.keys()
    assert Path(summary["checkpoint"]).name == "step-000003"
    assert "engine and trainer differ on fixed prompts by " in output
    assert "step 3/3 0:00 left " in output and "tensorboard --logdir" in output
    assert "held-out problems, 24 completions: " in output.partition("step 1/3 ")[0]
    first = output.partition("first rollout, ")[2].partition("step 1/3 ")[0]  # before it is trained on
    assert " cut off by rollout.max_completion_tokens=64; " in first and " groups with different rewards\n" in first
    assert " no_answer " in output.partition("step 1/3 ")[2] and " truncated " in output.partition("step 1/3 ")[2]
    assert "\x1b" not in output  # no terminal: no control characters
    assert "a completion stops at token '<|endoftext|>' (1); text 'Question:'" in output
    assert json.loads((folder / "run/config.json").read_text())["optimizer"]["beta2"] == 0.999


def test_export_is_the_trained_model(whole: tuple[Path, str]) -> None:
    exported = whole[0] / "run/hf"
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    base = load_file(ROOT / "examples/tiny/model/model.safetensors")
    trained = model.state_dict()
    moved = [name for name, weight in base.items() if not torch.equal(trained[name], weight)]
    assert moved == list(base)
    assert max(float((trained[name] - base[name]).abs().max()) for name in base) < 6 * 2e-4 * 1.5  # 6 AdamW steps


def test_an_export_during_the_run_is_the_policy_of_its_step(whole: tuple[Path, str], tmp_path: Path) -> None:
    run = whole[0] / "run"
    assert [path.name for path in (run / "exports").iterdir()] == ["step-000002"]
    megatron_to_hf(
        run / "checkpoints/step-000002",
        tmp_path / "hf",
        like=None,
        dtype=None,
        max_shard_size="5GB",
        processes=1,
        progress=lambda _: None,
    )
    converted = load_file(tmp_path / "hf/model.safetensors")
    exported = AutoModelForCausalLM.from_pretrained(run / "exports/step-000002", dtype=torch.float32).state_dict()
    assert all(torch.equal(exported[name], weight) for name, weight in converted.items())
    last = load_file(run / "hf/model.safetensors")
    assert not any(torch.equal(last[name], weight) for name, weight in converted.items())


def test_resumed_run_is_the_undisturbed_one(whole: tuple[Path, str], resumed: tuple[Path, str]) -> None:
    assert "resuming from" in resumed[1]
    assert same_run(resumed[0], whole[0])
    for name in ("step-000001", "step-000002"):
        paths = [folder / f"run/rollouts/{name}.jsonl.gz" for folder in (resumed[0], whole[0])]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_profiled_step_is_written_by_every_process(resumed: tuple[Path, str]) -> None:
    folder, output = resumed
    [step] = (folder / "run/profile").iterdir()
    assert step.name == "step-000002"
    assert sorted(p.name for p in step.iterdir()) == [f"rank-{r}.{kind}" for r in (0, 1) for kind in ("json.gz", "txt")]
    seconds = metrics(folder)[2]  # on the first process
    for rank in (0, 1):
        events = json.loads(gzip.decompress((step / f"rank-{rank}.json.gz").read_bytes()))["traceEvents"]
        for phase in ("rollout", "score", "gradient_share", "train"):
            traced = sum(e["dur"] for e in events if e.get("cat") == "user_annotation" and e["name"] == phase) * 1e-6
            assert traced > 0 if rank else traced == pytest.approx(seconds[f"seconds/{phase}"], rel=0.1, abs=0.05)
        ranges = {"layers", "output head", "optimizer", "gpu_model_runner: forward", "optimizer-inner-step"}
        assert ranges <= {e["name"] for e in events}
        backward = [e for e in events if e["name"] == "backward-compute"]  # of each micro-batch
        assert len(backward) >= 2 + 6  # of the optimizer steps, and of the penalty's share of the gradient
        assert "\ntrain: " in (step / f"rank-{rank}.txt").read_text()
    assert f"profile: {folder}/run/profile (open a trace in ui.perfetto.dev or chrome://tracing)" in output


def test_evaluations_while_it_trains_are_recorded(whole: tuple[Path, str], resumed: tuple[Path, str]) -> None:
    """Those before and after training as without the others; of step 2, after which it was resumed, once."""
    folder, output = resumed
    rows, others = metrics(folder), metrics(whole[0])
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        scores = Scores.read(folder / f"run/evaluations/step-{row['step']:06d}.json")
        assert {name: row[f"eval/{name}"] for name in scores.scalars()} == scores.scalars()
        assert scores.model == f"{folder / 'run'} after step {row['step']}" and len(scores.problems) == 6
    for i in (0, 3):
        assert [row["eval/pass@4"] for row in (rows[i], others[i])] == [rows[i]["eval/pass@4"]] * 2
    assert "eval/pass@1" in rows[1] and "eval/pass@1" not in others[1]
    events = EventAccumulator(str(folder / "run/tensorboard"))
    events.Reload()
    assert {event.step for event in events.Scalars(tag("eval/pass@1"))} == {0, 1, 2, 3}
    assert output.count("held-out problems after step 2: pass@1 ") == 1 and "after step 1:" not in output
    assert json.loads((folder / "run/summary.json").read_text())["pass@1"].keys() == {"before", "after"}


def test_a_finished_run_can_be_resumed(resumed: tuple[Path, str]) -> None:
    folder, _ = resumed
    before, summary = metrics(folder), json.loads((folder / "run/summary.json").read_text())
    finish(start(folder, "--resume"))
    assert metrics(folder) == before
    again = json.loads((folder / "run/summary.json").read_text())
    assert again | {"seconds": 0} == summary | {"seconds": 0}


def test_a_damaged_checkpoint_is_passed_over(whole: tuple[Path, str], resumed: tuple[Path, str]) -> None:
    folder, _ = resumed
    damaged = folder / "run/checkpoints/step-000003/__0_0.distcp"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    output = finish(start(folder, "--resume"))
    assert f"WARNING: {damaged}: bytes " in output and " have changed since they were written; " in output
    assert "step-000002, the newest sound one" in output
    assert same_run(folder, whole[0])


def evaluate(folder: Path, *, tensor: int) -> subprocess.Popen[str]:
    """`evaluate` of the run's latest checkpoint with an engine of `tensor` processes, a few problems at a time."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={tensor}"] if tensor > 1 else []
    command = [sys.executable, *launcher, "-m", "megatron_rapo", "evaluate", str(folder / "config.toml")]
    command += ["--model", str(folder / "run"), "--output", str(folder / "samples.jsonl")]
    command += ["--set", "rollout.max_concurrent=2", "--set", f"rollout.tensor={tensor}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_evaluate_goes_on_after_a_kill_and_finds_what_the_run_found(whole: tuple[Path, str]) -> None:
    """Evaluate a checkpoint by one process, then by two: no sample is lost or doubled, and all are the run's."""
    folder, _ = whole
    samples = folder / "samples.jsonl"
    killed = evaluate(folder, tensor=1)
    deadline = time.monotonic() + HANG_S
    while not samples.exists() or samples.read_bytes().count(b"\n") < 3:  # the settings and a part of two problems
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    before = samples.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert 3 <= kept.count(b"\n") < 7
    output = finish(evaluate(folder, tensor=2))
    there = kept.count(b"\n") - 1
    assert f"going on: {there} of 6 problems are there" in output
    assert "24 completions: " in output and " cut off by evaluation.max_completion_tokens=64\n" in output
    assert samples.read_bytes().startswith(kept)
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["index"] for line in lines[1:]] == list(range(6))
    assert {len(line["samples"]) for line in lines[1:]} == {4}
    of_run = Scores.read(folder / "run/evaluations/step-000003.json")
    found = Scores.read(folder / "samples.json")
    assert found.scores == of_run.scores and found.problems == of_run.problems
    hf = load_file(folder / "run/converted/step-000003/model.safetensors")
    exported = load_file(folder / "run/hf/model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in hf.items())


def test_an_earlier_run_is_not_lost(whole: tuple[Path, str]) -> None:
    process = start(whole[0])
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode != 0
    assert f"error: run.folder={whole[0] / 'run'}: holds an earlier run" in output
    assert "--resume" in output and "--overwrite" in output
    assert len(metrics(whole[0])) == 4


def test_told_to_end_it_saves(tmp_path: Path) -> None:
    """One process is told, as by a scheduler that takes its node; no checkpoint would be saved before the end.

    tests/slurm/ has it go on.
    """
    process = start(tmp_path, "--set", "checkpoint.every_steps=0", steps=100_000)
    try:
        ranks_after_first_step(process, tmp_path)[1].send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=HANG_S)
    finally:
        kill_tree(process)
    assert process.returncode == 75 and "process 1 of the run" not in output
    assert "rank 1: told to end soon (SIGUSR1)" in output
    last = metrics(tmp_path)[-1]["step"]
    assert f"stopped after step {last}; --resume goes on" in output
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == [f"step-{last:06d}"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[int, psutil.Process]]]:
    """A run that has finished its first step, and its training processes by rank."""
    process = start(tmp_path, "--set", "batch.oversampled_prompts=0", steps=100_000)
    try:
        yield process, ranks_after_first_step(process, tmp_path)
    finally:
        kill_tree(process)


def test_a_rank_that_dies_ends_the_run(running: tuple[subprocess.Popen[str], dict[int, psutil.Process]]) -> None:
    process, ranks = running
    ranks[1].kill()
    output, _ = process.communicate(timeout=COLLECTIVE_S / 2)  # long before the collectives' own timeout
    assert process.returncode != 0
    assert "rank 0: lost another process of this run" in output or "rank 0: told to end (SIGTERM)" in output
    assert not ranks[0].is_running()


def test_ctrl_c_ends_the_run(running: tuple[subprocess.Popen[str], dict[int, psutil.Process]]) -> None:
    process, ranks = running
    process.send_signal(signal.SIGINT)  # a terminal sends it to the launcher, whose processes have their own sessions
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert "rank 0: interrupted; --resume goes on" in output
    assert not any(rank.is_running() for rank in ranks.values())
