"""How many answers the verifier judges in a second, by workers, and what an answer that hangs costs.

    python -m benchmarks.bench_verifier [--check] [--answers N] [--workers N ...] [--repeats N] > result.json

Answers that need mathematics are all different, in every turn others; half of them are right. Pools take turns on the
same ones, and their fastest turns are compared, which on a machine with other work are those that it disturbed least.
The slowest pool then judges its last turn again, from its cache. Whole numbers and fractions need no worker.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.environment import environment
from megatron_rapo.types import Outcome
from megatron_rapo.verifier import VerifierPool

TARGET_RATIO = 1.7  # of two workers to one, where there are two cores
HANG = r"\boxed{9^{9^{9^{9}}}}"
FRACTIONS, BUDGET_S = 20_000, 60.0
FORMS = (
    (r"\frac{{{n}x}}{{{d}}}", r"\frac{{{n}}}{{{d}}}x"),
    (r"{n}\sqrt{{{d}}}", r"\sqrt{{{n2d}}}"),
    ("({n}, {d})", r"\left({n}, \frac{{{d2}}}{{2}}\right)"),
    (r"x^2 + {n}x + {d}", r"{d} + x(x + {n})"),
)


def mathematics(count: int, turn: int = 0) -> list[tuple[str, str]]:
    """Return completions and references. Every second pair is right."""
    pairs = []
    for i in range(count):
        n, d = 2 * ((i + turn * count) // len(FORMS)) + 1, 8
        given, reference = FORMS[i % len(FORMS)]
        words = {"n": n, "d": d if i % 2 else d + 1, "n2d": n * n * d, "d2": 2 * d}
        pairs.append((rf"\boxed{{{given.format(**words)}}}", reference.format(**{**words, "d": d})))
    return pairs


def rate(pool: VerifierPool, items: Sequence[tuple[str, str]], right: int) -> float:
    """Return answers per second."""
    started = time.perf_counter()
    verdicts = pool.judge_all(items)
    elapsed_s = time.perf_counter() - started
    found = sum(verdict.outcome is Outcome.CORRECT for verdict in verdicts)
    assert found == right, f"{found} of {len(items)} are found right, and {right} are"
    return len(items) / elapsed_s


def measure(workers: Sequence[int], answers: int, repeats: int) -> dict[str, Any]:
    numbers = [(rf"\boxed{{{i}}}", str(i + i % 2)) for i in range(20 * answers)]
    rates: dict[int, list[float]] = {count: [] for count in workers}
    with ExitStack() as stack:
        pools = {count: stack.enter_context(VerifierPool(count, 60.0)) for count in workers}
        for pool in pools.values():
            pool.judge_all(mathematics(4 * len(FORMS), turn=repeats * answers))
        for turn in range(repeats):
            items = mathematics(answers, turn)
            for count, pool in pools.items():
                rates[count].append(rate(pool, items, answers // 2))
        known = rate(pools[workers[0]], items, answers // 2)
        plain = [rate(pools[workers[0]], numbers, 10 * answers) for _ in range(repeats)]
    base = workers[0]
    return {
        "answers": answers,
        "repeats": repeats,
        "mathematics": [
            {
                "workers": count,
                "answers_per_s": round(max(each), 1),
                "median": round(statistics.median(each), 1),
                f"of_{base}": round(max(each) / max(rates[base]), 2),
            }
            for count, each in rates.items()
        ],
        "known_per_s": round(known),
        "whole_numbers_per_s": round(max(plain)),
        "fractions": fractions(max(workers)),
        "hang": hang(repeats),
    }


def fractions(workers: int) -> dict[str, float]:
    r"""Measure the time for a large step's number of \frac{n}{8}, half of them right, and count timeouts."""
    numerators = range(1, 2 * FRACTIONS, 2)
    items = [(rf"\boxed{{\frac{{{n}}}{{8}}}}", str((n + n % 4 // 2) / 8)) for n in numerators]
    with VerifierPool(workers, 5.0, budget_s=BUDGET_S) as pool:
        pool.judge_all(mathematics(len(FORMS)))
        started = time.perf_counter()
        outcomes = [verdict.outcome for verdict in pool.judge_all(items)]
        seconds = time.perf_counter() - started
    late = outcomes.count(Outcome.TIMEOUT)
    assert late or outcomes == [Outcome.WRONG if n % 4 // 2 else Outcome.CORRECT for n in numerators]
    return {"answers": FRACTIONS, "budget_s": BUDGET_S, "seconds": round(seconds, 2), "timed_out": late}


def hang(repeats: int, timeout_s: float = 1.0) -> dict[str, float]:
    """Return the seconds for which an answer that never ends blocks a worker."""
    lost_s = []
    with VerifierPool(1, timeout_s) as pool:
        pool.judge_all(mathematics(1))
        for _ in range(repeats):
            started = time.perf_counter()
            outcomes = [verdict.outcome for verdict in pool.judge_all([(HANG, "1"), *mathematics(1)])]
            assert outcomes[0] is Outcome.TIMEOUT, outcomes
            lost_s.append(time.perf_counter() - started)
    return {"timeout_s": timeout_s, "lost_s": round(statistics.median(lost_s), 2)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Throughput of the verifier; prints JSON.")
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15, help="turns that every pool takes")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 where 2 workers are below {TARGET_RATIO}")
    options = parser.parse_args(arguments)
    machine = {**environment("math-verify", "sympy"), "load_average": round(os.getloadavg()[0], 2)}
    result = measure(options.workers, options.answers, options.repeats)
    print(json.dumps({"machine": machine, **result}, indent=2))
    two = next((each for each in result["mathematics"] if each["workers"] == 2), None)
    return int(options.check and (two is None or two["of_1"] < TARGET_RATIO))


if __name__ == "__main__":
    sys.exit(main())
