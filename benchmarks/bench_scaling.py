"""How the seconds of a training step (score and train) grow with its tokens, with the model, and over DP 1 and 2.

    python -m benchmarks.bench_scaling [--check] [--model SIZE ...] [--turns N] [--repeats N] > result.json
    python -m benchmarks.bench_scaling --table result.json

A step is `Policy.score` (policy and reference) and `Policy.train_step` with RAPO's loss, on packed sequences of one
length in micro-batches of one size, so that twice the tokens are twice the micro-batches. Processes have one thread.
Each turn starts one process, then two that share the same tokens (data parallel), for every model; in it all numbers of
tokens take turns. A time is that of the first process, a figure the median over turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.environment import conclude, environment, say
from benchmarks.gpu.flops import training_flops
from benchmarks.gpu.policy import policy_of
from benchmarks.gpu.settings import TIMEOUT_S, TORCH, run_config, sequences
from benchmarks.launch import launch
from benchmarks.models import CPU_SIZES, write_model
from benchmarks.turns import take_turns
from megatron_rapo.config import Config
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.scoring.packing import PackedBatch

TOKENS_TARGET = 2.1  # times the seconds that twice the tokens take at most
MICROBATCH = {"1M": 2048, "10M": 1024, "135M": 512}  # tokens
MICROBATCHES = (2, 4, 8)  # of a step, over all processes
LENGTH = 128  # of every sequence
DATA_PARALLEL = (1, 2)


# One model on one number of processes.


def step(policy: Policy, config: Config, batches: Sequence[PackedBatch]) -> None:
    [scored] = policy.score([batches])
    policy.train_step(scored, loss_function(config, policy.sequence_mean))


def work(size: str, folder: Path, repeats: int) -> None:
    """Write the seconds of each turn, by tokens."""
    init_process_group(TIMEOUT_S)
    model, microbatch = folder / size, MICROBATCH[size]
    config = run_config(model, TORCH, tokens_per_microbatch=microbatch, precision={"dtype": "float32"})
    vocab_size = read_shape(model).vocab_size
    with policy_of(config) as policy:
        sides = {}
        for count in MICROBATCHES:
            rollout = sequences(vocab_size, count=count * microbatch // LENGTH, length=LENGTH)
            batches = policy.pack(rollout)
            assert len(batches) * dist.get_world_size() == count, f"{len(batches)} micro-batches on each process"
            sides[str(count * microbatch)] = partial(step, policy, config, batches)
        taken = take_turns(sides, repeats)
    if dist.get_rank() == 0:
        seconds = {tokens: [turn.wall_s for turn in turns] for tokens, turns in taken.items()}
        (folder / "result.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


# All of them.


def measure(sizes: Sequence[str], turns: int, repeats: int) -> list[dict[str, Any]]:
    taken: dict[tuple[str, int], list[dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as name:
        folder = Path(name)
        for size in sizes:
            write_model(folder / size, CPU_SIZES[size])
        for turn in range(turns):
            for size in sizes:
                for processes in DATA_PARALLEL:
                    arguments = ["--work", folder, "--model", size, "--repeats", repeats]
                    launch(
                        "benchmarks.bench_scaling", arguments, processes=processes, threads=1, timeout_s=3 * TIMEOUT_S
                    )
                    found = json.loads((folder / "result.json").read_text())
                    taken.setdefault((size, processes), []).append(found)
                    say(f"turn {turn + 1}/{turns}, {size}, DP {processes}: {found}")
        return [
            row for size in sizes for row in rows_of(size, folder / size, {dp: taken[size, dp] for dp in DATA_PARALLEL})
        ]


def rows_of(
    size: str, model: Path, taken: Mapping[int, Sequence[Mapping[str, Sequence[float]]]]
) -> list[dict[str, Any]]:
    """Return a row for each number of tokens."""
    rows: list[dict[str, Any]] = []
    for tokens in taken[1][0]:
        by_turn = {dp: [statistics.median(turn[tokens]) for turn in turns] for dp, turns in taken.items()}
        seconds = {dp: statistics.median(each) for dp, each in by_turn.items()}
        flops = training_flops(read_shape(model), [LENGTH] * (int(tokens) // LENGTH))
        flops = flops * 5 // 3  # a pass forward is a third of a training step's, and there are two of them before it
        row = {
            "model": size,
            "tokens": int(tokens),
            **{f"dp{dp}_s": round(each, 4) for dp, each in seconds.items()},
            "speedup": round(statistics.median(a / b for a, b in zip(by_turn[1], by_turn[2], strict=True)), 3),
            "gflops_per_s": round(flops / seconds[1] / 1e9, 1),
        }
        if rows:
            row["of_half_the_tokens"] = {f"dp{dp}": round(row[f"dp{dp}_s"] / rows[-1][f"dp{dp}_s"], 3) for dp in taken}
        rows.append(row)
    return rows


def targets_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the targets for twice the tokens, and whether they are met."""
    return [
        {
            "case": f"{row['model']}, {row['tokens']} tokens, {layout}",
            "of_half_the_tokens": value,
            "at_most": TOKENS_TARGET,
            "met": value <= TOKENS_TARGET,
        }
        for layout, value in row.get("of_half_the_tokens", {}).items()
    ]


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    rows = [
        "| model | tokens | DP 1, s | of half the tokens | DP 2, s | of half the tokens | DP 1 by 2 | GFLOP/s, DP 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        halves = row.get("of_half_the_tokens", {})
        cells = [row["model"], f"{row['tokens']:,}"]
        for dp in DATA_PARALLEL:
            cells += [f"{row[f'dp{dp}_s']:.3f}", f"{halves[f'dp{dp}']:.2f}" if halves else ""]
        cells += [f"{row['speedup']:.2f}", str(row["gflops_per_s"])]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Seconds of a training step by tokens, model, DP; prints JSON.")
    parser.add_argument("--model", nargs="+", choices=CPU_SIZES, default=list(CPU_SIZES), metavar="SIZE")
    parser.add_argument("--turns", type=int, default=3, help="that every layout takes, in processes of its own")
    parser.add_argument("--repeats", type=int, default=3, help="steps of each number of tokens in a turn")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if options.work:
        work(options.model[0], options.work, options.repeats)
        return 0
    machine = environment("megatron-core")
    rows = measure(options.model, options.turns, options.repeats)
    targets = [target for row in rows for target in targets_of(row)]
    result = {"machine": machine, "turns": options.turns, "repeats": options.repeats, "rows": rows, "targets": targets}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
