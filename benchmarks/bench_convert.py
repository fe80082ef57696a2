"""Speed and memory of converting a checkpoint, against a plain copy of the same file.

    python -m benchmarks.bench_convert [--check] [--repeats N] [--folder FOLDER] > result.json
    python -m benchmarks.bench_convert --table result.json

The model has random weights in bfloat16, in the shape of Qwen3-0.6B (1.2 GB). Every side runs in a process of its own,
in turns, and ends with its files on the disk (fsync). Its time is from the call to the end, imports apart; its memory
the kernel's high-water mark of the resident set, imports and all.

- `copy`: the safetensors file, by shutil.copyfile.
- `to_megatron`, `to_hf`: megatron-rapo convert's two ways, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import child_environment, conclude, environment, fields_of
from benchmarks.models import write_model
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.convert.to_megatron import hf_to_megatron
from megatron_rapo.models import read_shape
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.models.stored_weights import WEIGHTS

SIDES = ("copy", "to_megatron", "to_hf")
SPEED_TARGET = 0.5  # of a copy's
MEMORY_TARGET_MIB, MEMORY_TARGET_TENSORS = 1e9 / 2**20, 3
PROJECTED = {"Qwen2.5-7B": 15.23e9, "Qwen2.5-72B": 145.4e9}  # bytes in bfloat16
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
SMALL = CONFIG | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 8192}


def run_side(side: str, folder: Path) -> None:
    """Run one side in this process, and print seconds and MiB."""
    torch.set_num_threads(1)
    model, megatron, target = folder / "model", folder / "megatron", folder / "target"
    start = time.perf_counter()
    if side == "copy":
        target.mkdir()
        shutil.copyfile(model / WEIGHTS, target / WEIGHTS)
        descriptor = os.open(target / WEIGHTS, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    elif side == "to_megatron":
        hf_to_megatron(model, target, Layout(), dtype=torch.bfloat16, processes=1, progress=lambda _: None)
    else:
        megatron_to_hf(
            megatron,
            target,
            like=None,
            dtype=None,
            max_shard_size="100GB",
            processes=1,
            progress=lambda _: None,
        )
    seconds = time.perf_counter() - start
    peak_kib = int(fields_of("/proc/self/status")["VmHWM"].removesuffix("kB"))  # ru_maxrss has the parent's
    print(json.dumps({"s": seconds, "peak_mib": peak_kib / 1024}))


def measure(folder: Path, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Return the turns of every side, without the first one, which warms the page cache."""
    hf_to_megatron(
        folder / "model",
        folder / "megatron",
        Layout(),
        dtype=torch.bfloat16,
        processes=1,
        progress=lambda _: None,
    )
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(1 + repeats):
        for side in SIDES:
            os.sync()  # what the side before has left to the disk
            command = [sys.executable, "-m", "benchmarks.bench_convert", "--side", side, "--folder", str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment())
            if side == "to_hf":
                assert same_file(folder / "model" / WEIGHTS, folder / "target" / WEIGHTS), "not the same file"
            shutil.rmtree(folder / "target")
            if turn:
                taken[side].append(json.loads(done.stdout))
            print(f"turn {turn}/{repeats} {side}: {done.stdout.strip()}", file=sys.stderr)
    return taken


def same_file(a: Path, b: Path) -> bool:
    """Return whether two files have the same tensors, bit by bit, in any order."""
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def tensors(path: Path) -> Iterator[Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        for name in sorted(handle.keys()):
            yield handle.get_tensor(name)


def summary(taken: Mapping[str, Sequence[Mapping[str, float]]], nbytes: int, largest: int) -> dict[str, Any]:
    """Return the fastest turns (with the least disturbance), their ratios and projections, and medians."""
    fastest = {side: min(turn["s"] for turn in turns) for side, turns in taken.items()}
    sides = {}
    for side, turns in taken.items():
        seconds = fastest[side]
        sides[side] = {
            "s": round(seconds, 3),
            "median_s": round(statistics.median(turn["s"] for turn in turns), 3),
            "gb_per_s": round(nbytes / seconds / 1e9, 3),
            "of_a_copys_speed": round(fastest["copy"] / seconds, 3),
            "peak_mib": round(max(turn["peak_mib"] for turn in turns)),
            "projected_s": {model: round(size / nbytes * seconds) for model, size in PROJECTED.items()},
        }
    return {"bytes": nbytes, "largest_tensor_bytes": largest, "sides": sides}


def targets_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    most = round(MEMORY_TARGET_MIB + MEMORY_TARGET_TENSORS * result["largest_tensor_bytes"] / 2**20)
    targets = []
    for side in ("to_megatron", "to_hf"):
        found = result["sides"][side]
        speed, peak = found["of_a_copys_speed"], found["peak_mib"]
        targets += [
            {"side": side, "figure": "of_a_copys_speed", "value": speed, "at_least": SPEED_TARGET},
            {"side": side, "figure": "peak_mib", "value": peak, "at_most": most},
        ]
        targets[-2]["met"], targets[-1]["met"] = speed >= SPEED_TARGET, peak <= most
    return targets


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    rows = [
        "| | s | median, s | GB/s | of a copy's speed | peak memory, MiB | projected: 7B | 72B |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        projected = [f"{seconds / 60:.1f} min" for seconds in found["projected_s"].values()]
        figures = [found[name] for name in ("s", "median_s", "gb_per_s", "of_a_copys_speed")]
        cells = [side, *(f"{figure:.2f}" for figure in figures), str(found["peak_mib"]), *projected]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of converting a checkpoint; prints JSON.")
    parser.add_argument("--repeats", type=int, default=5, help="turns that every side takes")
    parser.add_argument("--folder", type=Path, help="where to work, on the disk that is meant (4 GB)")
    parser.add_argument("--small", action="store_true", help="a small model, to try the benchmark")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if options.side:
        run_side(options.side, options.folder)
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=options.folder) as name:
        folder = Path(name)
        write_model(folder / "model", SMALL if options.small else CONFIG)
        shapes = hf_shapes(read_shape(folder / "model"))
        largest = max(torch.Size(shape).numel() for shape in shapes.values()) * torch.bfloat16.itemsize
        nbytes = (folder / "model" / WEIGHTS).stat().st_size
        result = summary(measure(folder, options.repeats), nbytes, largest)
    found = {"machine": environment("safetensors"), "repeats": options.repeats, **result, "targets": targets_of(result)}
    return conclude(found, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
