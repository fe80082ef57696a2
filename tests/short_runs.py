"""A short run from the command line on two processes, as a user starts it: started, finished, killed, compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from tests.patience import COLLECTIVE_S, HANG_S

ROOT = Path(__file__).parents[1]
CONFIG = """
[model]
path = "examples/tiny/model"
[data]
train = "examples/tiny/train.jsonl"
template = "plain"
max_prompt_tokens = 32
[batch]
prompts_per_step = 4
completions_per_prompt = 4
optimizer_steps_per_rollout = 2
tokens_per_microbatch = 1024
dynamic_sampling_rounds = 2
oversampled_prompts = 2
[algorithm]
divergence = "forward_kl_exact"
alpha = 0.02
ratio = "sequence"
[parallel]
tensor = 2
[rollout]
max_completion_tokens = 64
kv_cache_mib = 32
stop = ["Question:"]
[reshard]
parity_every_steps = 1
[optimizer]
lr = 2e-4
[reward]
timeout_s = 60.0
budget_s = 600.0
[precision]
dtype = "float32"
[checkpoint]
every_steps = 1
hf_every = 2
[monitor]
gradient_share_every_steps = 1
rollouts_every_steps = 2
rollouts_completions = 6
[evaluation]
data = "{heldout}"
samples_per_problem = 4
k = [1, 4]
max_completion_tokens = 64
[run]
folder = "{folder}"
steps = {steps}
"""
CONFIG += f"timeout_s = {COLLECTIVE_S}\n"
ONE_PASS = ("--set", "batch.optimizer_steps_per_rollout=1", "--set", "batch.old_logprobs_from_training=true")
LAYOUTS: dict[str, Sequence[str]] = {  # on two processes, as settings on the command line
    "TP2": (),
    "PP2": ("--set", "parallel.tensor=1", "--set", "parallel.pipeline=2"),
    "DP2 distributed": ("--set", "parallel.tensor=1", "--set", "optimizer.distributed=true", *ONE_PASS),
    "PP2 DP2 distributed": (
        *("--set", "parallel.tensor=1", "--set", "parallel.pipeline=2"),
        *("--set", "optimizer.distributed=true", "--set", "batch.oversampled_prompts=4", *ONE_PASS),
    ),
}
PROCESSES = {"PP2 DP2 distributed": 4}  # where they are not two


def start(
    folder: Path, *arguments: str, steps: int = 3, nproc: int = 2, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Launch `train` into `folder`/run, with its output in a pipe; `prefix` is a command that starts it."""
    folder.mkdir(exist_ok=True)
    heldout = folder / "heldout.jsonl"
    heldout.write_text("".join((ROOT / "examples/tiny/heldout.jsonl").read_text().splitlines(keepends=True)[:6]))
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder / "run", heldout=heldout, steps=steps))
    launch = [*prefix, sys.executable, "-m", "megatron_rapo", "launch", f"--nproc-per-node={nproc}"]
    command = [*launch, "train", str(config), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def save_wide_model(folder: Path) -> Path:
    """The tiny model with 32 more hidden units and a fifth head, which do nothing; sizes that Megatron pads in buckets.

    Each of the 4 heads gets keys and values of its own, as 5 heads share none. RMSNorm's mean is over more units, so
    that its weights are smaller.
    """
    tiny, more = ROOT / "examples/tiny/model", 32
    shutil.copytree(tiny, folder)
    config = json.loads((tiny / "config.json").read_text())
    config |= {"hidden_size": 128 + more, "num_attention_heads": 5, "num_key_value_heads": 5}
    (folder / "config.json").write_text(json.dumps(config))
    wide = {}
    for name, weight in load_file(tiny / "model.safetensors").items():
        if ".k_proj." in name or ".v_proj." in name:
            weight = weight.unflatten(0, (2, 32)).repeat_interleave(2, dim=0).flatten(0, 1)
        if name.endswith("norm.weight"):
            weight = (128 / 160) ** 0.5 * weight
        rows = weight.dim() == 2 and (".self_attn." in name or ".down_proj." in name)
        columns = ".down_proj." not in name
        wide[name] = pad(weight, (0, more * columns, 0, more) if rows else (0, more))
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def finish(process: subprocess.Popen[str], timeout_s: float = HANG_S) -> str:
    """The output of a run that must succeed."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        kill_tree(process)
    assert process.returncode == 0, output
    return output


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a run as a power cut does: no process sees that another has gone."""
    if process.poll() is None:
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for end in (psutil.Process.suspend, psutil.Process.kill):
            for each in processes:
                with suppress(psutil.NoSuchProcess):
                    end(each)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def ranks_after_first_step(process: subprocess.Popen[str], folder: Path) -> dict[int, psutil.Process]:
    """The training processes of a run, by rank, when it has finished its first step."""
    deadline = time.monotonic() + HANG_S
    while not ((folder / "run/metrics.jsonl").exists() and len(metrics(folder)) > 1):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    children = psutil.Process(process.pid).children()
    return {int(c.environ()["RANK"]): c for c in children if "RANK" in c.environ()}


def same_run(found: Path, expected: Path) -> bool:
    """The same numbers at every step but for times, and the same weights at the end."""
    for row, other in zip(metrics(found), metrics(expected), strict=True):
        timeless = {name for name in other if not name.startswith("seconds/") and not name.endswith("_s")}
        assert {name: row[name] for name in timeless} == {name: other[name] for name in timeless}
    ours, theirs = (load_file(folder / "run/hf/model.safetensors") for folder in (found, expected))
    return all(torch.equal(ours[name], weight) for name, weight in theirs.items())
