"""What each process pays for the prompts of a large data set: made by every process itself, and shared by all.

    python -m benchmarks.bench_prompts [--problems N] [--processes N] [--model FOLDER] [--check] > result.json

The problems are random words, 25 to 85 of each, with two more columns. CPU seconds are of all threads, with tokenizer
and imports; memory is beyond what a process had before. Memory that is mapped from the shared file is in `rss_mib` and
not in `private_mib`; `peak_rss_mib` is of the whole process.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import REPOSITORY, child_environment, conclude, environment, fields_of, say
from megatron_rapo.data import load_prompts, template_of

TEMPLATE, MAX_PROMPT_TOKENS = "qwen-boxed", 1024
SEEN = 1000  # prompts that each process looks at afterwards, as a run does
TARGET_S, TARGET_MIB = 3.0, 300.0  # of a process that maps what another one made
TEXT = (
    "train car apple farmer price average triangle circle radius number integer sum product hours minutes travels city "
    "remaining total cost each every fraction percent probability marble bag red blue green respectively if then how "
    r"many much what is the of a in and to find value simplify $x^2+3x-4$ $\frac{1}{2}$ $\sqrt{17}$ polynomial"
)
SIDES = {"alone": False, "shared": True}


def write_problems(path: Path, count: int) -> None:
    """Write problems as JSON lines. A larger `count` only adds problems."""
    rng, vocabulary = random.Random(0), TEXT.split()

    def text(words: int) -> str:
        return " ".join(
            rng.choice(vocabulary) if rng.random() < 0.85 else str(rng.randrange(1000)) for _ in range(words)
        )

    with path.open("w") as file:
        for _ in range(count):
            row = {"problem": text(rng.randint(25, 85)), "answer": str(rng.randrange(1000))}
            file.write(json.dumps(row | {"level": rng.randrange(5), "solution": text(60)}) + "\n")


def work(data: Path, model: Path, *, shared: bool) -> None:
    """Load the prompts on this process, print what that took, and keep them until standard input ends."""
    before, started_s, started_cpu_s = memory_mib(), time.perf_counter(), time.process_time()
    prompts = load_prompts(data, model, template_of(TEMPLATE), MAX_PROMPT_TOKENS, shared=shared)
    taken = {"cpu_s": time.process_time() - started_cpu_s, "wall_s": time.perf_counter() - started_s}
    tokens = [len(prompt.token_ids) for prompt in prompts.prompts[:SEEN]]
    after = memory_mib()
    found = taken | {
        "private_mib": after["RssAnon"] - before["RssAnon"],
        "rss_mib": after["VmRSS"] - before["VmRSS"],
        "peak_rss_mib": after["VmHWM"],
        "mean_tokens": sum(tokens) / len(tokens),
    }
    rounded = {name: round(value, 2) for name, value in found.items()}
    print(json.dumps(rounded | {"prompts": len(prompts.prompts), "digest": prompts.digest()}), flush=True)
    sys.stdin.read()


def memory_mib() -> dict[str, float]:
    status = fields_of("/proc/self/status")
    return {name: int(status[name].removesuffix("kB")) / 1024 for name in ("RssAnon", "VmRSS", "VmHWM")}


def measure(data: Path, model: Path, side: str, processes: int) -> list[dict[str, Any]]:
    """Measure `processes` that start together. Return the one with the most CPU time first."""
    command = [sys.executable, "-m", "benchmarks.bench_prompts", "--worker", side, "--model", str(model), str(data)]
    with tempfile.TemporaryDirectory() as temporary:
        variables = child_environment() | {"TMPDIR": temporary, "TOKENIZERS_PARALLELISM": "false"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, env=variables, cwd=REPOSITORY, **pipes) for _ in range(processes)]
        said = [process.stdout.readline() for process in started if process.stdout]
        for process in started:
            process.communicate()
    if any(process.returncode for process in started):
        raise RuntimeError(f"{side}: a process failed; what it said is above")
    return sorted(map(json.loads, said), key=lambda found: -found["cpu_s"])


def summed_up(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the totals of all processes, and the targets of a process that only maps the prompts."""
    other = sides["shared"][-1]
    totals = {
        side: {key: sum(p[key] for p in found) for key in ("cpu_s", "private_mib")} for side, found in sides.items()
    }
    ratios = {key: round(totals["shared"][key] / totals["alone"][key], 3) for key in ("cpu_s", "private_mib")}
    targets = [
        {"cpu_s": other["cpu_s"], "at_most_s": TARGET_S, "met": other["cpu_s"] <= TARGET_S},
        {"rss_mib": other["rss_mib"], "at_most_mib": TARGET_MIB, "met": other["rss_mib"] <= TARGET_MIB},
        {"same_prompts": True, "met": len({p["digest"] for found in sides.values() for p in found}) == 1},
    ]
    return {"shared_of_alone": ratios, "targets": targets}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What processes pay for prompts, alone and shared; prints JSON.")
    parser.add_argument("--problems", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "examples/tiny/model", help="whose tokenizer")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("data", type=Path, nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.data, options.model, shared=SIDES[options.worker])
        return 0
    machine = environment("transformers", "tokenizers", "pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "problems.jsonl"
        write_problems(data, options.problems)
        sides = {}
        for side in SIDES:
            sides[side] = measure(data, options.model, side, options.processes)
            say(f"{side}: {sides[side]}")
    asked = {"problems": options.problems, "processes": options.processes, "model": options.model.name}
    return conclude({"machine": machine, **asked, "sides": sides, **summed_up(sides)}, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
