"""Useful tokens, balance and time of packed micro-batches, against sequences that are padded to the longest of theirs.

    python -m benchmarks.bench_packing [--check] [--case NAME ...] [--repeats N] > result.json
    python -m benchmarks.bench_packing --table result.json

Lengths are log-normal, as rollouts of mathematics are, up to 8k. What is planned (which sequences go into which
micro-batch of which rank) is planned for many layouts and measured in one process: the same sequences are scored, by
policy and reference, and trained on, by every side in turn, by the same model with random weights, on one thread, of
which the CPU time is taken. A figure is the median over turns, a ratio the median of the turns' ratios. No side changes
a weight (the learning rate is next to nothing), so that all must find the same loss and the same gradient norm.

- `packed`: what a run does. `packed, prompts shared`: with batch.share_prompts; a prompt's tokens are then as useful as
  completions have them in common.
- `padded`: in the order of the rollout, as many sequences to a micro-batch as would fit if all were the longest.
- `padded, sorted`: longest first, as many to a micro-batch as fit with their padding: padding at its best.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.environment import conclude, environment, say
from benchmarks.models import write_model
from megatron_rapo.config import Config
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy, microbatches
from megatron_rapo.models import ModelShape, read_shape
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.scoring.packing import PackedBatch, pack
from megatron_rapo.types import TrainingSequence

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
QWEN2_5_1_5B = ModelShape(  # what the costs of what is planned are those of
    architecture="Qwen2ForCausalLM",
    num_layers=28,
    hidden_size=1536,
    ffn_hidden_size=8960,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    vocab_size=151_936,
    tied=True,
    norm_eps=1e-6,
    rope_theta=1e6,
    max_position=32_768,
)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {  # data-parallel ranks, [parallel]
    "DP8": (8, {}),
    "DP32": (32, {}),
    "DP8 TP2 SP": (8, {"tensor": 2, "sequence": True}),
    "DP4 TP8 SP": (4, {"tensor": 8, "sequence": True}),
    "DP8 PP4": (8, {"pipeline": 4}),
    "DP4 PP4 VPP2": (4, {"pipeline": 4, "virtual_pipeline": 2}),
    "DP8 CP2": (8, {"context": 2}),
    "DP4 TP4 SP PP2 CP4": (4, {"tensor": 4, "sequence": True, "pipeline": 2, "context": 4}),
}
PLANNED_SEQUENCES, PLANNED_MEDIAN, PLANNED_LONGEST, SIGMA = 1024, 800, 8192, 0.9
PLANNED_TOKENS = (16_384, 32_768)  # of a micro-batch
USEFUL_TARGET, IMBALANCE_TARGET = 0.95, 0.03
TIME_TARGETS = {"padded": 0.6, "padded, sorted": 1.0}  # of packed, at most
STEPS = ("score", "train")
GROUP = 8  # completions of a prompt


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the rollout that it is trained on."""

    model: Mapping[str, Any]
    sequences: int
    median: int  # tokens of a sequence
    longest: int
    prompt: int  # of which tokens of the prompt, which GROUP neighbours have in common
    tokens_per_microbatch: int


SMALL = LLAMA | {  # 1M parameters
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
MIDDLE = LLAMA | {  # 8M
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_hidden_layers": 6,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}
CASES = {
    # As much of the work is attention as in a model of billions up to 8k.
    "1M-512": Case(model=SMALL, sequences=256, median=50, longest=512, prompt=20, tokens_per_microbatch=4096),
    "8M-1k": Case(model=MIDDLE, sequences=32, median=100, longest=1024, prompt=50, tokens_per_microbatch=4096),
    # Most of it is.
    "1M-8k": Case(model=SMALL, sequences=16, median=800, longest=8192, prompt=120, tokens_per_microbatch=32_768),
}


def lengths(count: int, median: int, longest: int, seed: int = 0) -> list[int]:
    """Draw log-normal lengths, and add the longest one: a rollout with a limit usually reaches it."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), SIGMA, count - 1)
    return [longest, *np.clip(drawn, 16, longest).astype(int).tolist()]


# What is planned.


def plan(name: str, tokens_per_microbatch: int) -> dict[str, Any]:
    num_ranks, parallel = LAYOUTS[name]
    config = configuration(Path("."), Path("."), tokens_per_microbatch, parallel)
    sizes = lengths(PLANNED_SEQUENCES, PLANNED_MEDIAN, PLANNED_LONGEST)
    sequences = rollout(sizes, QWEN2_5_1_5B.vocab_size)
    start = time.perf_counter()
    ranks = microbatches(config, QWEN2_5_1_5B, sequences, num_ranks=num_ranks)
    planning_s = time.perf_counter() - start
    costs = [sum(QWEN2_5_1_5B.sequence_cost(sizes[i]) for indices, _ in mine for i in indices) for mine in ranks]
    return {
        "layout": name,
        "tokens_per_microbatch": tokens_per_microbatch,
        "microbatches": len(ranks[0]),
        "useful": round(sum(sizes) / sum(tokens for mine in ranks for _, tokens in mine), 4),
        "useful_padded": round(useful_padded(sizes, tokens_per_microbatch), 4),
        "imbalance": round(max(costs) / statistics.mean(costs) - 1, 4),
        "planning_s": round(planning_s, 4),
    }


def useful_padded(sequences: Sequence[int], tokens_per_microbatch: int) -> float:
    rows = in_order(sequences, tokens_per_microbatch)
    return sum(sequences) / sum(len(indices) * max(sequences[i] for i in indices) for indices in rows)


def in_order(sequences: Sequence[int], tokens_per_microbatch: int) -> list[list[int]]:
    """Group indices into micro-batches, in order."""
    count, indices = tokens_per_microbatch // max(sequences), range(len(sequences))
    return [list(indices[i : i + count]) for i in indices[::count]]


def longest_first(sequences: Sequence[int], tokens_per_microbatch: int) -> list[list[int]]:
    """Group indices into micro-batches, the longest first."""
    rows: list[list[int]] = [[]]
    for index in sorted(range(len(sequences)), key=lambda i: -sequences[i]):
        if rows[-1] and (len(rows[-1]) + 1) * sequences[rows[-1][0]] > tokens_per_microbatch:
            rows.append([])
        rows[-1].append(index)
    return rows


# What is measured.


def configuration(model: Path, folder: Path, tokens_per_microbatch: int, parallel: Mapping[str, Any]) -> Config:
    return Config.model_validate(
        {
            "model": {"path": model, "layers": "torch"},
            "data": {"train": folder / "none.jsonl", "template": "plain", "max_prompt_tokens": 1},
            "batch": {"prompts_per_step": 1, "tokens_per_microbatch": tokens_per_microbatch},
            "rollout": {"max_completion_tokens": 1},
            "optimizer": {"lr": 1e-30},
            "precision": {"dtype": "float32"},
            "parallel": parallel,
            "run": {"folder": folder, "steps": 1},
        }
    )


def rollout(sizes: Sequence[int], vocab_size: int, prompt: int = 1) -> list[TrainingSequence]:
    """Return sequences of `sizes` random tokens."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, vocab_size, (-(-len(sizes) // GROUP), prompt))
    return [
        TrainingSequence(
            token_ids=np.concatenate([prompts[i // GROUP], rng.integers(3, vocab_size, n - prompt)]).astype(np.int32),
            prompt_length=prompt,
            engine_logprobs=np.full(n - prompt, -6.0, np.float32),
            advantage=float(rng.normal()),
            phi=0.9,
            reward=float(rng.integers(2)),
        )
        for i, n in enumerate(sizes)
    ]


def packed(config: Config, shape: ModelShape, sequences: Sequence[TrainingSequence]) -> list[PackedBatch]:
    """Pack sequences as a run on one process does."""
    share = config.batch.share_prompts
    return [
        pack([sequences[i] for i in indices], indices, context=1, num_tokens=num_tokens, share_prompts=share)
        for indices, num_tokens in microbatches(config, shape, sequences, num_ranks=1)[0]
    ]


def padded(sequences: Sequence[TrainingSequence], indices: Sequence[int]) -> PackedBatch:
    """Return a micro-batch of rows of the same length."""
    real = [len(sequences[i].token_ids) for i in indices]
    rows = [lengthened(sequences[i], max(real)) for i in indices]
    batch = pack(rows, indices, context=1, num_tokens=len(real) * max(real))
    real_T = torch.tensor(real).repeat_interleave(max(real))
    return batch.only(batch.position_T + 1 < real_T)  # an entry is about the next token


def lengthened(sequence: TrainingSequence, length: int) -> TrainingSequence:
    missing = length - len(sequence.token_ids)
    return replace(
        sequence,
        token_ids=np.pad(sequence.token_ids, (0, missing)),
        engine_logprobs=np.pad(sequence.engine_logprobs, (0, missing)),
    )


class Taken(NamedTuple):
    """By one side in one turn."""

    seconds: dict[str, float]  # of each of STEPS
    result: dict[str, float]  # of training


def measure_apart(case: Case, repeats: int) -> dict[str, Any]:
    """Measure in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, case, repeats).result()


def measure(case: Case, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(prefix="bench-packing-") as name:
        folder = Path(name)
        write_model(folder / "model", case.model)
        config = configuration(folder / "model", folder, case.tokens_per_microbatch, {})
        parallel = init_parallel(config.parallel, timeout_s=600.0, seed=0)
        policy = Policy(config, read_shape(folder / "model"), parallel)
    sizes = [max(n, case.prompt + 8) for n in lengths(case.sequences, case.median, case.longest)]
    sequences = rollout(sizes, case.model["vocab_size"], case.prompt)
    sharing = config.model_copy(update={"batch": config.batch.model_copy(update={"share_prompts": True})})
    sides = {
        "packed": packed(config, policy.shape, sequences),
        "packed, prompts shared": packed(sharing, policy.shape, sequences),
        "padded": [padded(sequences, rows) for rows in in_order(sizes, case.tokens_per_microbatch)],
        "padded, sorted": [padded(sequences, rows) for rows in longest_first(sizes, case.tokens_per_microbatch)],
    }
    turn(policy, config, policy.pack(sequences[-2:]))  # before the clock starts: threads, optimizer state
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    for i in range(repeats):
        for name, batches in sides.items():
            taken[name].append(turn(policy, config, batches))
            say(f"turn {i + 1}/{repeats} {name}: {taken[name][-1].seconds}")
    dist.destroy_process_group()
    return {"tokens": sum(sizes), "sides": summary(sum(sizes), sides, taken)}


def turn(policy: Policy, config: Config, batches: Sequence[PackedBatch]) -> Taken:
    start = time.process_time()
    [scored] = policy.score([batches])
    between = time.process_time()
    result = policy.train_step(scored, loss_function(config, policy.sequence_mean)).means
    seconds = {"score": between - start, "train": time.process_time() - between}
    return Taken(seconds, {name: result[name] for name in ("loss", "grad_norm")})


def summary(
    tokens: int, sides: Mapping[str, Sequence[PackedBatch]], taken: Mapping[str, Sequence[Taken]]
) -> dict[str, Any]:
    """Return each side's median seconds, packed's share of them, and the largest error of its result."""
    found: dict[str, Any] = {}
    for name, batches in sides.items():
        figures: dict[str, Any] = {
            "microbatches": len(batches),
            "useful": round(tokens / sum(len(batch.token_ids_T) for batch in batches), 4),
        }
        for step in STEPS:
            mine, packed = ([each.seconds[step] for each in taken[side]] for side in (name, "packed"))
            figures[f"{step}_s"] = round(statistics.median(mine), 3)
            share = statistics.median(p / m for p, m in zip(packed, mine, strict=True))
            figures[f"packed_of_{step}"] = round(share, 3)
        expected = taken["packed"][0].result
        error = max(abs(taken[name][0].result[key] / expected[key] - 1) for key in expected)
        figures["error_against_packed"] = float(f"{error:.1e}")
        found[name] = figures
    return found


# All of them.


def targets_of(planned: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the targets, and whether they are met."""
    for each in planned:
        where = {key: each[key] for key in ("layout", "tokens_per_microbatch")}
        yield where | {"useful": each["useful"], "at_least": USEFUL_TARGET, "met": each["useful"] >= USEFUL_TARGET}
        met = each["imbalance"] <= IMBALANCE_TARGET
        yield where | {"imbalance": each["imbalance"], "at_most": IMBALANCE_TARGET, "met": met}
    for case in cases:
        useful = case["sides"]["packed"]["useful"]
        yield {"case": case["case"], "useful": useful, "at_least": USEFUL_TARGET, "met": useful >= USEFUL_TARGET}
        for side, at_most in TIME_TARGETS.items():
            for step in STEPS:
                share = case["sides"][side][f"packed_of_{step}"]
                asked = {"case": case["case"], "side": side, f"packed_of_{step}": share, "at_most": at_most}
                yield asked | {"met": share <= at_most}


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    rows = [
        "| layout | tokens a micro-batch | useful tokens | padded | cost of the slowest rank over the mean |",
        "|---|---|---|---|---|",
    ]
    for each in result["planned"]:
        shares = f"{each['useful']:.1%} | {each['useful_padded']:.0%} | {each['imbalance']:.2%}"
        rows.append(f"| {each['layout']} | {each['tokens_per_microbatch']:,} | {shares} |")
    rows += ["", "| model | side | useful tokens | scoring, s | training step, s |", "|---|---|---|---|---|"]
    for case in result["cases"]:
        for name, side in case["sides"].items():
            times = (f"{side[f'{step}_s']:.2f} ({1 / side[f'packed_of_{step}']:.2f})" for step in STEPS)
            rows.append(f"| {case['case']} | {name} | {side['useful']:.1%} | {' | '.join(times)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Packed micro-batches against padded ones; prints JSON.")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3, help="turns that every side takes")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    machine = environment("megatron-core")
    planned = [plan(name, tokens) for tokens in PLANNED_TOKENS for name in LAYOUTS]
    cases = [{"case": name, **measure_apart(CASES[name], options.repeats)} for name in options.case]
    targets = list(targets_of(planned, cases))
    result = {"machine": machine, "repeats": options.repeats, "planned": planned, "cases": cases, "targets": targets}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
