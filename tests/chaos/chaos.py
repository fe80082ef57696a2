"""A run killed with `kill -9` at random instants, resumed each time, and compared with one that was left alone.

    python -m tests.chaos.chaos [--kills 30] [--seed 0] [--layout TP2] > result.json

Exit status 0 where both runs have the same numbers at every step and the same weights in the end.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from tests.short_runs import LAYOUTS, PROCESSES, ROOT, finish, kill_tree, metrics, same_run, start

PHASES = ("checkpoint", "reshard", "parity", "rollout", "verify", "score", "gradient_share", "train")
"""In the order in which they follow on a step that was recorded."""
EARLY = 0.2  # share of kills that do not wait for a step
STEPS_MORE = 2  # after the last kill, at least
TINY_MODEL = ROOT / "examples/tiny/model"
START_S = 20.0  # an early kill comes within this time


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=LAYOUTS, default="TP2")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rapo-chaos-") as folder:
        result = chaos(Path(folder), options.kills, options.seed, options.layout)
    print(json.dumps(result, indent=2))
    return 0 if result["same"] else 1


def chaos(folder: Path, kills: int, seed: int, layout: str, model: Path = TINY_MODEL) -> dict[str, Any]:
    """Both runs, in `folder`: where each kill fell, and whether the runs are the same."""
    steps, nproc = kills + STEPS_MORE, PROCESSES.get(layout, 2)
    settings = [*LAYOUTS[layout], "--set", f"model.path={model}"]
    finish(start(folder / "alone", *settings, steps=steps, nproc=nproc))
    step_s = {name: seconds_of(folder / "alone", name) for name in PHASES}
    rng = random.Random(seed)
    found = []
    for number in range(kills):
        found.append(run_and_kill(folder / "killed", steps, rng, step_s, settings, nproc))
        print(f"kill {number + 1} of {kills}: {found[-1]}", file=sys.stderr, flush=True)
    last = start(folder / "killed", *settings, *how_to_go_on(folder / "killed"), steps=steps, nproc=nproc)
    output = finish(last)
    assert "WARNING" not in output, output
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {name: version(packages_distributions()[name][0]) for name in ("torch", "megatron", "vllm")},
        "layout": layout,
        "kills": found,
        "seed": seed,
        "steps": steps,
        "same": same_run(folder / "killed", folder / "alone"),
    }


def run_and_kill(
    folder: Path, steps: int, rng: random.Random, step_s: Mapping[str, float], settings: Sequence[str], nproc: int
) -> dict[str, Any]:
    """Start or resume the run in `folder`, and kill all of its processes at once or after its first step."""
    before = last_step(folder)
    started = time.monotonic()
    process = start(folder, *settings, *how_to_go_on(folder), steps=steps, nproc=nproc)
    try:
        if rng.random() < EARLY:
            wait(process, rng.uniform(0.0, START_S))
        else:
            while last_step(folder) <= before and process.poll() is None:
                time.sleep(0.05)
            wait(process, rng.uniform(0.0, sum(step_s.values())))
        killed = time.time()
    finally:
        kill_tree(process)
    output, _ = process.communicate()
    assert "WARNING" not in output and "error" not in output.lower(), output
    return {
        "after_step": last_step(folder),
        "seconds": round(time.monotonic() - started, 1),
        "saving": any((folder / "run/checkpoints").glob("*.partial")),
        "probably_in": phase_at(killed - recorded_at(folder), step_s) if last_step(folder) > before else "start",
    }


def how_to_go_on(folder: Path) -> list[str]:
    """As a job script would; before the first checkpoint there is nothing to go on from."""
    if (folder / "run/checkpoints/latest").exists():
        return ["--resume"]
    shutil.rmtree(folder / "run", ignore_errors=True)
    return []


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)


def last_step(folder: Path) -> int:
    """Of the whole lines of the record, of which a kill may have cut the last."""
    try:
        return max((row["step"] for row in metrics(folder)), default=0)
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def recorded_at(folder: Path) -> float:
    return (folder / "run/metrics.jsonl").stat().st_mtime


def seconds_of(folder: Path, phase: str) -> float:
    """Mean over the steps of an undisturbed run; of saving, which belongs to no step, over their number."""
    rows = [row for row in metrics(folder) if "seconds/step" in row]
    summary = json.loads((folder / "run/summary.json").read_text())
    return float(summary["seconds"].get(phase, 0.0)) / len(rows)


def phase_at(seconds: float, step_s: Mapping[str, float]) -> str:
    """What an undisturbed run does so long after a step was recorded."""
    for phase in PHASES:
        seconds -= step_s[phase]
        if seconds < 0:
            return phase
    return PHASES[-1]


if __name__ == "__main__":
    sys.exit(main())
