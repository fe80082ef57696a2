"""Speed and memory of training steps on one GPU: MFU in bfloat16 and FP8, and what preflight says of the memory.

    python -m benchmarks.gpu.training [--check] [--repeats N] > result.json
    python -m benchmarks.gpu.training --small > result.json     # a small model, on a CPU too, to try the benchmark

The model has random weights in a shape of 1.0e9 parameters; an optimizer step is four micro-batches of 8,192 tokens, in
sequences of 1,024, and is timed whole: forward, backward and update, the median of its turns. Precisions follow each
other in one process: torch's layers, Transformer Engine's, and each of FP8's recipes that the GPU has.

- MFU: FLOPs by flops.py over the vendor's peak in bfloat16, which is FP8's denominator too.
- Memory: the most that torch's allocator had given out in scoring and in training, above what it had before the model
  was built, by the sum of preflight's parts for that state (without the engine's).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.environment import conclude, environment, refuse_without_gpu, say
from benchmarks.gpu.flops import peak_bf16_flops, training_flops
from benchmarks.gpu.policy import policy_of
from benchmarks.gpu.settings import TIMEOUT_S, TRANSFORMER_ENGINE, precisions, run_config, sequences
from benchmarks.memory import peak_bytes, release, reset_peak_bytes
from benchmarks.models import QWEN2_1B, QWEN2_SMALL, write_model
from megatron_rapo.config import Config
from megatron_rapo.models import ModelShape, read_shape
from megatron_rapo.preflight.memory import states
from megatron_rapo.runtime.devices import Backend
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function

WARM_UP = 2  # steps that do not count
MFU_TARGET = 0.40  # in bfloat16
FP8_TARGET, FP8_RECIPE = 1.2, "fp8 tensorwise"  # times as fast as bfloat16; the default recipe
MEMORY_TARGET = 0.10  # of the measured memory, that preflight may be off
TARGETS_FOR = ("H100", "H200")  # of speed
ENGINE_PARTS = ("engine weights", "KV cache")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of an optimizer step."""

    microbatches: int
    tokens_per_microbatch: int
    length: int  # of every sequence

    @property
    def lengths(self) -> list[int]:
        return [self.length] * (self.microbatches * self.tokens_per_microbatch // self.length)


FULL = Sizes(microbatches=4, tokens_per_microbatch=8192, length=1024)
SMALL = Sizes(microbatches=2, tokens_per_microbatch=256, length=64)


def measure(model: Path, precision: str, sizes: Sizes, *, repeats: int) -> dict[str, Any]:
    """Measure one precision in a world of one process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, shape = run_config(model, precision, tokens_per_microbatch=sizes.tokens_per_microbatch), read_shape(model)
    rollout = sequences(shape.vocab_size, count=len(sizes.lengths), length=sizes.length)
    before, seconds, scoring_s = reset_peak_bytes(device), [], []
    with policy_of(config) as policy:
        batches = policy.pack(rollout)
        assert len(batches) == sizes.microbatches, f"{len(batches)} micro-batches instead of {sizes.microbatches}"
        for turn in range(WARM_UP + repeats):
            reset_peak_bytes(device)
            start = time.perf_counter()
            [scored] = policy.score([batches])
            scoring_peak = peak_bytes(device)
            scored_at = time.perf_counter()
            reset_peak_bytes(device)
            policy.train_step(scored, loss_function(config, policy.sequence_mean))
            training_peak = peak_bytes(device)
            if turn >= WARM_UP:
                scoring_s.append(scored_at - start)
                seconds.append(time.perf_counter() - scored_at)
    peaks = {"scoring": scoring_peak - before, "training": training_peak - before}
    return {
        "precision": precision,
        "step_s": round(statistics.median(seconds), 4),
        "fastest_step_s": round(min(seconds), 4),
        "scoring_s": round(statistics.median(scoring_s), 4),
        **speed(shape, sizes, statistics.median(seconds), torch.cuda.get_device_name() if device == "cuda" else ""),
        "memory": memory(shape, config, peaks),
    }


def speed(model: ModelShape, sizes: Sizes, seconds: float, device_name: str) -> dict[str, Any]:
    """Return the speed of a step, with MFU if the device's peak is known."""
    flops, peak = training_flops(model, sizes.lengths), peak_bf16_flops(device_name)
    return {
        "tokens_per_s": round(sum(sizes.lengths) / seconds),
        "tflops_per_s": round(flops / seconds / 1e12, 2),
        "mfu": round(flops / seconds / peak, 4) if peak else None,
    }


def memory(model: ModelShape, config: Config, peaks: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Return by state the measured memory, preflight's without an engine, and their ratio."""
    said = states(model, config, replicas=1, layers=Backend.resolve(config).layers)
    found = {}
    for state, measured in peaks.items():
        parts = {name: nbytes for name, nbytes in said[state].parts.items() if name not in ENGINE_PARTS}
        total = sum(parts.values())
        found[state] = {
            "measured_mib": round(measured / 2**20, 1),
            "preflight_mib": round(total / 2**20, 1),
            "preflight_of_measured": round(total / measured, 3) if measured else 0.0,
        }
    return found


def summary(cases: Sequence[Mapping[str, Any]], device_name: str) -> dict[str, Any]:
    """Return how much faster FP8 is, and the targets."""
    measured = {case["precision"]: case for case in cases if "failed" not in case}
    bf16 = measured.get(TRANSFORMER_ENGINE)
    speedups = {
        name: round(bf16["step_s"] / case["step_s"], 3)
        for name, case in measured.items()
        if bf16 and name.startswith("fp8")
    }
    targets = [
        {"figure": f"{case['precision']} runs", "value": case["failed"], "met": False}
        for case in cases
        if "failed" in case
    ]
    if bf16 and any(name in device_name for name in TARGETS_FOR):
        speeds = [("mfu in bfloat16", bf16["mfu"], MFU_TARGET)]
        if FP8_RECIPE in speedups:
            speeds.append((f"speed of {FP8_RECIPE} by bfloat16's", speedups[FP8_RECIPE], FP8_TARGET))
        targets += [{"figure": f, "value": v, "at_least": least, "met": v >= least} for f, v, least in speeds]
    for name, case in measured.items():
        for state, found in case["memory"].items():
            value = found["preflight_of_measured"]
            met = 1 - MEMORY_TARGET <= value <= 1 + MEMORY_TARGET
            figure = f"preflight of measured memory, {state}, {name}"
            targets.append({"figure": figure, "value": value, "within": MEMORY_TARGET, "met": met})
    return {"fp8_speedups": speedups, "targets": targets}


def measure_all(sizes: Sizes, shape: Mapping[str, Any], *, repeats: int) -> list[dict[str, Any]]:
    """Measure every precision. Record the reason for one that fails."""
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        model = Path(folder) / "model"
        write_model(model, shape)
        for precision in precisions():
            try:
                cases.append(measure(model, precision, sizes, repeats=repeats))
            except Exception as error:  # of any kind: the others are measured all the same
                cases.append({"precision": precision, "failed": f"{type(error).__name__}: {error}"[:2000]})
            say(str(cases[-1]))
            release()
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of training steps on one GPU; prints JSON.")
    parser.add_argument("--repeats", type=int, default=5, help="steps that count")
    parser.add_argument("--small", action="store_true", help="a small model, on a CPU too, to try the benchmark")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    if not options.small:
        refuse_without_gpu("benchmarks.gpu.training")
    machine = environment("transformer-engine", "megatron-core")
    sizes, shape = (SMALL, QWEN2_SMALL) if options.small else (FULL, QWEN2_1B)
    init_process_group(TIMEOUT_S)
    cases = measure_all(sizes, shape, repeats=options.repeats)
    dist.destroy_process_group()
    result = {"machine": machine, "model": dict(shape), "step": asdict(sizes), "cases": cases}
    return conclude(result | summary(cases, machine["gpu"]["name"] if machine["gpu"] else ""), check=options.check)


if __name__ == "__main__":
    sys.exit(main())
