"""Time of a training step against that of a bare Megatron-Core step on the same packed tokens and the same layers.

    python -m benchmarks.bench_training [--check] [--model SIZE ...] [--dtype TYPE] [--repeats N] > result.json
    python -m benchmarks.bench_training --table result.json

Sides take turns in one process with one thread, the bare one with a model and an optimizer of its own; a time is the
median over turns, a ratio the median of the turns'.

- `ours`: `Policy.train_step` on scored micro-batches: RAPO's loss with its divergence and all its metrics, the gradient
  norm, the optimizer. `ours, GRPO`: with the k3 estimate that TRL calls its KL.
- `bare`: Megatron's schedule, GPTModel with labels (which holds the logits whole and calls
  vocab_parallel_cross_entropy), gradient clipping and the optimizer; no importance weights, no entropy, no reference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.environment import conclude, environment, say
from benchmarks.gpu.flops import training_flops
from benchmarks.gpu.policy import policy_of
from benchmarks.gpu.settings import TIMEOUT_S, TORCH, run_config, sequences
from benchmarks.megatron_step import BareStep
from benchmarks.models import CPU_SIZES, write_model
from benchmarks.turns import Turn, figures, take_turns
from megatron_rapo.config import Config
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.scoring.packing import PackedBatch

TARGET = 1.15  # of the bare step's time, that ours takes at most
TARGET_FOR = "135M"
TOKENS = {"1M": 8192, "10M": 4096, "135M": 1024}  # of a step, in one micro-batch
QUICK_TOKENS = 256
LENGTH = 128  # of every sequence
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, GRPO": {"divergence": "reverse_kl_k3", "phi": "constant", "beta": 0.0},
}


def settings(model: Path, tokens: int, dtype: str, algorithm: Mapping[str, Any]) -> Config:
    precision = {"dtype": dtype}
    return run_config(model, TORCH, tokens_per_microbatch=tokens, precision=precision, algorithm=dict(algorithm))


def our_step(policy: Policy, config: Config, scored: Sequence[PackedBatch]) -> dict[str, float]:
    return policy.train_step(scored, loss_function(config, policy.sequence_mean)).means


def check_same_work(cross_entropy: float, scored: Sequence[PackedBatch]) -> None:
    """Check that the bare model, before its first update, gives the same tokens the policy's log-probabilities."""
    logps = [batch.old_logp_T[batch.mask_T] for batch in scored if batch.old_logp_T is not None]
    expected = -float(torch.cat(logps).mean())
    assert abs(cross_entropy - expected) < 1e-3 * expected, f"cross-entropy {cross_entropy}, the policy's {expected}"


def measure(model: Path, tokens: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Measure one model in a world of one process."""
    shape = read_shape(model)
    lengths = [LENGTH] * (tokens // LENGTH)
    rollout = sequences(shape.vocab_size, count=len(lengths), length=LENGTH)
    config = settings(model, tokens, dtype, ALGORITHMS["ours"])
    with policy_of(config) as policy:
        [scored] = policy.score([policy.pack(rollout)])
        bare = BareStep(config, shape, policy.parallel)
        check_same_work(bare(scored), scored)
        sides: dict[str, Any] = {"bare": partial(bare, scored)}
        for name, algorithm in ALGORITHMS.items():
            sides[name] = partial(our_step, policy, settings(model, tokens, dtype, algorithm), scored)
        taken = take_turns(sides, repeats)
    flops = training_flops(shape, lengths)
    return summary(taken, flops) | {"dtype": dtype, "tokens": tokens}


def summary(taken: Mapping[str, Sequence[Turn]], flops: int) -> dict[str, Any]:
    sides = figures(taken, "bare")
    for side in sides.values():
        side["gflops_per_s"] = round(flops / side["wall_s"] / 1e9, 1)
    return {"sides": sides}


def targets_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return our targets, and whether they are met."""
    if case["model"] != TARGET_FOR:
        return []
    value = case["sides"]["ours"]["of_bare"]
    return [{"case": f"{case['model']}, {case['dtype']}", "of_bare": value, "at_most": TARGET, "met": value <= TARGET}]


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown: seconds of a step, and in brackets the ratio to the bare model's."""
    names = list(result["cases"][0]["sides"])
    rows = [f"| | tokens | {', s | '.join(names)}, s | GFLOP/s of ours |", "|---|---|" + "---|" * len(names) + "---|"]
    for case in result["cases"]:
        sides = case["sides"]
        cells = [f"{case['model']}, {case['dtype']}", f"{case['tokens']:,}"]
        cells += [f"{sides[name]['wall_s']:.3f} ({sides[name]['of_bare']:.2f})" for name in names]
        rows.append(f"| {' | '.join([*cells, str(sides['ours']['gflops_per_s'])])} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time of a training step against a bare one; prints JSON.")
    parser.add_argument("--model", nargs="+", choices=CPU_SIZES, default=list(CPU_SIZES), metavar="SIZE")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--repeats", type=int, default=5, help="turns that every side takes")
    parser.add_argument("--quick", action="store_true", help="few tokens, to try the benchmark")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    machine, cases = environment("megatron-core"), []
    torch.set_num_threads(1)
    init_process_group(TIMEOUT_S)
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        for size in options.model:
            write_model(Path(name) / size, CPU_SIZES[size])
            tokens = QUICK_TOKENS if options.quick else TOKENS[size]
            for dtype in options.dtype:
                cases.append({"model": size, **measure(Path(name) / size, tokens, dtype, options.repeats)})
                say(str(cases[-1]))
    dist.destroy_process_group()
    targets = [target for case in cases for target in targets_of(case)]
    result = {"machine": machine, "repeats": options.repeats, "cases": cases, "targets": targets}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
