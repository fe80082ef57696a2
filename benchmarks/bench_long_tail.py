"""How long rollouts take that wait for their longest completions, and such that do not; and what that costs.

    python -m benchmarks.bench_long_tail [--steps 33] [--spare-prompts 4] > result.json
    python -m benchmarks.bench_long_tail --table result.json

A random model ends a completion with a chance of about 1 / 128 a token, so that lengths have a tail: a mean of some 120
tokens, and one in 33 is cut off at 448. A real engine samples the same prompts under every policy; nothing is trained.
Steps of the engine are exact, and what a rollout takes on a GPU that is not full; seconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import torch.distributed as dist

from benchmarks.environment import environment
from benchmarks.models import QWEN2_SMALL, write_model
from megatron_rapo.config import Config
from megatron_rapo.models import WeightReader, read_shape
from megatron_rapo.models.parameter_map import engine_shards, fill
from megatron_rapo.monitor import Monitor
from megatron_rapo.rewards import Rewards
from megatron_rapo.rollout import Engine
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.training.group_scheduler import GroupScheduler
from megatron_rapo.types import Problem, Prompt
from megatron_rapo.verifier import VerifierPool

POLICIES = {"waits": (0, 1), "carries, 1 step": (1, 1), "carries, 3 steps": (1, 3), "drops": (1, 0)}
"""Whether prompts are spared, and for how many steps groups are carried."""
PROMPT_TOKENS, MOST_TOKENS = 32, 448
COLUMNS = {
    "decode_steps": "engine steps a rollout",
    "seconds": "seconds a rollout",
    "completion_tokens": "tokens a completion",
    "stale_tokens": "stale tokens",
    "dropped_tokens": "tokens dropped",
}


def settings(model: Path, *, steps: int, oversampled_prompts: int, carried_steps: int) -> Config:
    return Config.model_validate(
        {
            "model": {"path": model},
            "data": {"train": model / "none.jsonl", "max_prompt_tokens": PROMPT_TOKENS},
            "batch": {
                "prompts_per_step": 8,
                "completions_per_prompt": 4,
                "oversampled_prompts": oversampled_prompts,
                **({"partial_rollout_steps": carried_steps} if oversampled_prompts else {}),
            },
            "rollout": {"max_completion_tokens": MOST_TOKENS, "kv_cache_mib": 256, "max_concurrent": 64},
            "precision": {"dtype": "float32"},
            "run": {"folder": model / "run", "steps": steps},
        }
    )


def measure(rollouts: GroupScheduler, load: Callable[[int], None], steps: int) -> dict[str, float]:
    """Return means over `steps` rollouts of a policy, without the first one, which has no carried groups."""
    rows = []
    for step in range(1, steps + 1):
        load(step - 1)
        started = time.perf_counter()
        rollout = rollouts.next(step)
        rows.append(
            {
                "decode_steps": rollout.scalars["rollout/decode_steps"],
                "seconds": time.perf_counter() - started,
                "completion_tokens": fmean(len(c.token_ids) for group in rollout.groups for c in group.completions),
                "stale_tokens": rollout.scalars.get("rollout/stale_tokens", 0.0),
                "dropped_tokens": rollout.scalars.get("rollout/dropped_tokens", 0.0),
            }
        )
    return {name: round(fmean(row[name] for row in rows[1:]), 3) for name in COLUMNS}


def loader(engine: Engine, model: Path) -> Callable[[int], None]:
    """Return a function that loads the model's weights (always the same) into the engine as a given version."""
    shards, reader = engine_shards(read_shape(model), tensor=1, rank=0), WeightReader(model)

    def load(version: int) -> None:
        with engine.updating(version) as weights:
            for name, shard in shards.items():
                fill(weights.target(name), shard, reader.read)
                weights.complete(name)

    return load


def run(folder: Path, steps: int, oversampled_prompts: int) -> dict[str, Any]:
    model = folder / "model"
    write_model(model, QWEN2_SMALL | {"vocab_size": 128}, tokenizer=True)
    prompts = [
        Prompt(
            problem=Problem(id=str(i), text="", answer="1"),
            text="",
            token_ids=tuple(2 + (i * j) % 120 for j in range(PROMPT_TOKENS)),
        )
        for i in range(1, 8 * (steps + 2))
    ]
    found = {}
    config = settings(model, steps=steps, oversampled_prompts=0, carried_steps=1)
    engine = Engine(model, config.rollout, dtype="float32", max_sequence_tokens=config.max_sequence_tokens, seed=0)
    with closing(engine), VerifierPool(1, 5.0) as verifier:
        sampler = Sampler(engine, verifier, Rewards(config.reward))
        for name, (spares, carried_steps) in POLICIES.items():
            config = settings(
                model, steps=steps, oversampled_prompts=spares * oversampled_prompts, carried_steps=carried_steps
            )
            rollouts = GroupScheduler(config, sampler=sampler, monitor=Monitor(), prompts=prompts)
            found[name] = measure(rollouts, loader(engine, model), steps)
    return {
        "machine": environment("vllm"),
        "steps": steps,
        "oversampled_prompts": oversampled_prompts,
        "policies": found,
    }


def table(result: dict[str, Any]) -> str:
    """Format the figures as Markdown."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, row in result["policies"].items():
        lines.append(f"| {name} | {' | '.join(_shown(row[column]) for column in COLUMNS)} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rollouts with a long tail of lengths; prints JSON.")
    parser.add_argument("--steps", type=int, default=33)
    parser.add_argument("--spare-prompts", type=int, default=4, help="beyond the 8 of a step")
    parser.add_argument("--table", type=Path, help="print the table of a result, and measure nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        print(json.dumps(run(Path(folder), options.steps, options.oversampled_prompts), indent=2))
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
