"""This repository's trainer taking the steps of a case, on each of its processes.

    torchrun --nproc-per-node N -m benchmarks.grpo.our_side WORK OUTPUT          (both JSON)

It is `megatron_rapo train` but for two things: the engine is asked for completions of the case's lengths, and the clock
is read when a step has been recorded. What a run does besides what TRL does stays on: every resharding is proven, every
answer verified, the gap between engine and trainer measured, its quantiles and the estimator's scalars written to
metrics.jsonl. Off is what a user would turn off to save time: `OFF` below.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grpo.case import KL_COEFFICIENT, LEARNING_RATE, PROMPT_TOKENS, Work, odd_text
from benchmarks.grpo.clock import StepClock, write_steps
from benchmarks.grpo.our_variants import VARIANTS
from benchmarks.grpo.prescribed import prescribed_engine
from benchmarks.grpo.variant import Variant
from megatron_rapo import run
from megatron_rapo.config import Config
from megatron_rapo.monitor import Monitor
from megatron_rapo.rollout import setup
from megatron_rapo.rollout.sampler import sampling_seed
from megatron_rapo.runtime.rank import rank
from megatron_rapo.runtime.run_folder import RunFolder

OFF = {
    "reshard": {"parity_every_steps": 0},
    "checkpoint": {"hf_export": False},
    "monitor": {"writers": (), "rollouts_every_steps": 0, "gradient_share_every_steps": 0},
}


def configuration(work: Work, variant: Variant) -> Config:
    case = work.case
    rows = case.prompts * case.completions // variant.processes
    function = f"{odd_text.__module__}:{odd_text.__name__}"
    settings: dict[str, dict[str, Any]] = {
        "model": {"path": work.model},
        "data": {"train": work.problems, "template": "plain", "max_prompt_tokens": PROMPT_TOKENS},
        "batch": {
            "prompts_per_step": case.prompts,
            "completions_per_prompt": case.completions,
            "old_logprobs_from_training": True,  # as TRL has them, where it takes one optimizer step
        },
        "algorithm": {"divergence": "reverse_kl_k3", "phi": "constant", "alpha": KL_COEFFICIENT, "beta": 0.0},
        "reward": {"functions": [{"name": "odd", "function": function, "range": [0.0, 1.0]}]},
        "rollout": {
            "max_completion_tokens": case.longest,
            "max_concurrent": rows,
            "kv_cache_mib": 512,
        },
        "optimizer": {"lr": LEARNING_RATE},
        "run": {"folder": work.folder / "run", "steps": work.steps},
    }
    for section, fields in [*OFF.items(), *variant.settings.items()]:
        settings[section] = settings.get(section, {}) | dict(fields)
    return Config.model_validate(settings)


def lengths_by_seed(work: Work, seed: int) -> dict[int, int]:
    """Return the length of every completion of a run with this `seed`, by sampling seed."""
    group = work.case.completions
    return {
        sampling_seed(seed, step, i // group, i % group): length
        for step in range(1, work.steps + 1)
        for i, length in enumerate(work.case.completion_tokens)
    }


def timed_monitor(clock: StepClock) -> type[Monitor]:
    """Return a monitor class that reads the clock when a step has been recorded."""

    class TimedMonitor(Monitor):
        def step(self, *args: Any, **kwargs: Any) -> None:
            super().step(*args, **kwargs)
            clock.step_ended()

    return TimedMonitor


def train(work: Work, config: Config) -> StepClock:
    """Train, and return the clock of the steps. Other results are in the run's folder."""
    clock = StepClock()
    setup.Engine = prescribed_engine(lengths_by_seed(work, config.run.seed))  # type: ignore[misc]
    run.Monitor = timed_monitor(clock)  # type: ignore[misc]
    run.train(config, resume=False, overwrite=True)
    return clock


def parts_of(row: Mapping[str, float], step_s: float) -> dict[str, float]:
    """Return the seconds of variant.PARTS, from a line of metrics.jsonl."""
    parts = {name: row[f"seconds/{name}"] for name in ("rollout", "score", "train")}
    return {**parts, "other": step_s - sum(parts.values())}


def main(work: Path, output: Path) -> None:
    given = Work.from_json(work.read_text())
    config = configuration(given, VARIANTS[given.variant])
    clock = train(given, config)
    lines = RunFolder(config.run.folder).metrics.read_text().splitlines() if rank() == 0 else []
    rows = [row for row in map(json.loads, lines) if "seconds/step" in row]
    parts_s = [parts_of(row, step_s) for row, step_s in zip(rows[1:], clock.wall_s, strict=False)]
    count = len(given.case.completion_tokens)
    write_steps(output, rank(), clock, parts_s, [round(row["rollout/completion_tokens"] * count) for row in rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
