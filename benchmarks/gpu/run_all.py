"""Every test and benchmark for a GPU, one after the other, with a JSON file of each and a summary: benchmarks/gpu.sh.

A part that fails, or outlasts its limit, is not the end of it.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import REPOSITORY, as_json, environment, refuse_without_gpu, say

RESULTS = REPOSITORY / "benchmarks" / "results" / "gpu"
DISTRIBUTIONS = ("transformer-engine", "megatron-core", "vllm", "transformers")
TARGET_S = 600  # all of it, on one GPU
GRACE_S = 20  # for a part that is asked to stop
JUNIT = "tests.xml"
OLD_PYTEST = ("-o", "minversion=8.0", "-o", "addopts=--import-mode=importlib")
"""A GPU's image may have another pytest than CI, and no pytest-timeout, whose setting is then unknown."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A program that ends with 0 where all is well; what it prints is JSON, or it is pytest, which writes JUNIT."""

    command: Sequence[str]
    limit_s: float
    is_pytest: bool = False


def benchmark(module: str, *arguments: str, limit_s: float = 180) -> Part:
    return Part(command=(sys.executable, "-m", f"benchmarks.{module}", "--check", *arguments), limit_s=limit_s)


PARTS = {  # the short ones first
    "loss": benchmark("bench_loss", "--device", "cuda", "--dtype", "bfloat16"),
    "training": benchmark("gpu.training"),
    "reshard": benchmark("gpu.reshard"),
    "tests": Part(
        command=(
            sys.executable,
            "-m",
            "pytest",
            "tests/gpu",
            "-m",
            "gpu",
            *OLD_PYTEST,
            f"--junitxml={{folder}}/{JUNIT}",
        ),
        limit_s=480,
        is_pytest=True,
    ),
}


def run_all(parts: Mapping[str, Part], folder: Path) -> dict[str, Any]:
    """Run all parts: JSON goes to `folder`/PART.json, other output to PART.log. Return how they ended."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, part in parts.items():
        say(f"== {name}")
        found[name] = run(name, part, folder)
        say(f"   {found[name]['verdict']} ({found[name]['seconds']} s)")
    seconds = round(sum(each["seconds"] for each in found.values()), 1)
    passed = all(each["verdict"] == "passed" for each in found.values())
    return {"passed": passed, "seconds": seconds, "target_s": TARGET_S, "parts": found}


def run(name: str, part: Part, folder: Path) -> dict[str, Any]:
    """Run one part to its end or its time limit."""
    output, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [argument.format(folder=folder) for argument in part.command]
    for left in (output, log, *([folder / JUNIT] if part.is_pytest else [])):  # by an earlier run
        left.unlink(missing_ok=True)
    start = time.perf_counter()
    with open(log, "a") as said, open(log if part.is_pytest else output, "a") as printed:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=printed, stderr=said)
        try:
            status = process.wait(timeout=part.limit_s)
            verdict = "passed" if status == 0 else f"failed: exit status {status}"
        except subprocess.TimeoutExpired:
            verdict = f"failed: still running after {part.limit_s:g} s"
            stop(process)
    if part.is_pytest and (folder / JUNIT).exists():
        output.write_text(as_json(outcomes(folder / JUNIT)) + "\n")
    return {"verdict": verdict, "seconds": round(time.perf_counter() - start, 1), "log": log.name, "json": output.name}


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process as Ctrl-C does, so that it ends its children. Kill it if that does not help."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def outcomes(junit: Path) -> dict[str, Any]:
    """Summarise pytest's report: numbers of tests, and names and first lines of reasons of those not passed."""
    found: dict[str, Any] = {"passed": 0, "skipped": {}, "failed": {}}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            found["passed"] += 1
        else:
            reason = (problem.get("message") or "").partition("\n")[0]
            found["skipped" if problem.tag == "skipped" else "failed"][name] = reason
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every test and benchmark for a GPU.")
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="where results go (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args(arguments)
    refuse_without_gpu("benchmarks/gpu.sh")
    folder = options.folder.resolve()
    found = run_all({name: PARTS[name] for name in options.only}, folder)
    (folder / "summary.json").write_text(as_json({"machine": environment(*DISTRIBUTIONS), **found}) + "\n")
    print(json.dumps({name: each["verdict"] for name, each in found["parts"].items()}, indent=2))
    say(f"{found['seconds']} s in all (target: {TARGET_S}); results are in {folder}")
    return int(not found["passed"])


if __name__ == "__main__":
    sys.exit(main())
