"""Judge thousands of hostile completions and report the results. The exit status is 1 if one broke a limit.

python -m tests.verifier.fuzz [--count 10000] [--seed 0] [--workers 2] [--timeout-s 1] > result.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_rapo.types import Outcome
from megatron_rapo.verifier import MAX_READ_CHARS, VerifierPool, extractor
from megatron_rapo.verifier.verify import judge_plainly
from tests.verifier.hostile import MEGABYTE, Hostile, hostile

BATCH = 120
HONEST = ((r"\boxed{2/4}", r"\frac{1}{2}"), (r"\boxed{\frac{2}{3}}", "0.5"))  # right and wrong, after every batch
LATE_S = 1.0  # how long past its deadline a worker may be there, beyond what the machine kept this process waiting
READING_S = 5.0  # of one completion in the process that judges
GROWTH_MIB = 64  # of the process that judges, whatever it is given


class Watch(threading.Thread):
    """Checks twenty times a second how much memory the workers have, and how long one has outlived its deadline.

    `stalled_s` is how long the machine kept this process from checking.
    """

    def __init__(self, pool: VerifierPool) -> None:
        super().__init__(daemon=True)
        self.pool, self.done = pool, threading.Event()
        self.peak_mib, self.late_s, self.stalled_s = 0.0, 0.0, 0.0

    def run(self) -> None:
        slept = time.monotonic()
        while not self.done.wait(0.05):
            self.stalled_s = max(self.stalled_s, time.monotonic() - slept - 0.05)
            for worker in list(self.pool._workers.present):
                if memory := memory_mib(str(worker.pid), "VmHWM"):  # it is alive
                    self.late_s = max(self.late_s, time.monotonic() - worker.deadline)
                    self.peak_mib = max(self.peak_mib, memory)
            slept = time.monotonic()


def memory_mib(pid: str, name: str) -> float:
    """Return the memory of a process, MiB, or 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def reading_s(item: Hostile) -> float:
    """Measure how long the trainer's own process, which has no deadline, takes for one completion."""
    begun = time.monotonic()
    content = extractor("boxed")(item.completion)
    if content is not None and len(content) <= MAX_READ_CHARS:
        judge_plainly(content, item.reference)
    return time.monotonic() - begun


def batches(items: Iterator[Hostile]) -> Iterator[list[Hostile]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def fuzz(count: int, seed: int, workers: int, timeout_s: float) -> dict[str, Any]:
    """Judge hostile batches. After each, honest answers must get their right verdicts."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    honest = [Outcome.CORRECT, Outcome.WRONG]
    failures: list[str] = []
    longest_s = longest_reading_s = 0.0
    with tempfile.TemporaryDirectory() as folder, VerifierPool(workers, timeout_s) as pool:
        canary = Path(folder) / "canary"
        pool.judge_all(HONEST)
        watch = Watch(pool)
        watch.start()
        started, before_mib = time.monotonic(), memory_mib("self", "VmRSS")
        for number, batch in enumerate(batches(hostile(seed, count, canary))):
            longest_reading_s = max(longest_reading_s, max(map(reading_s, batch)))
            begun = time.monotonic()
            verdicts = pool.judge_all([(each.completion, each.reference) for each in batch])
            longest_s = max(longest_s, time.monotonic() - begun)
            for each, verdict in zip(batch, verdicts, strict=True):
                outcomes[each.kind][verdict.outcome.value] += 1
                if verdict.outcome is Outcome.CORRECT:
                    failures.append(f"correct: {each.completion[:200]!r} for {each.reference!r}")
            if [verdict.outcome for verdict in pool.judge_all(HONEST)] != honest:
                failures.append(f"batch {number}: honest answers were misjudged after it")
        seconds = time.monotonic() - started
        watch.done.set()
        watch.join()
        growth_mib = memory_mib("self", "VmRSS") - before_mib
        if canary.exists():
            failures.append("code was run")
    if watch.late_s > LATE_S + watch.stalled_s:
        failures.append(f"a worker was {watch.late_s:.2f} s past its deadline")
    if longest_reading_s > READING_S:
        failures.append(f"a completion took {longest_reading_s:.1f} s in the judging process")
    if growth_mib > GROWTH_MIB:
        failures.append(f"the judging process has grown by {growth_mib:.0f} MiB")
    return {
        **{"count": count, "seed": seed, "workers": workers, "timeout_s": timeout_s, "seconds": round(seconds, 1)},
        "longest_batch_s": round(longest_s, 1),
        "longest_reading_s": round(longest_reading_s, 2),
        "latest_worker_s": round(watch.late_s, 3),
        "machine_stalled_s": round(watch.stalled_s, 3),
        "worker_peak_mib": round(watch.peak_mib),
        "judging_process_growth_mib": round(growth_mib),
        "outcomes": dict(sum(outcomes.values(), Counter())),
        "outcomes_by_kind": {kind: dict(found) for kind, found in outcomes.items()},
        "failures": failures,
    }


def budget(workers: int, budget_s: float) -> dict[str, float]:
    """Measure how long two thousand endless answers, and a gigabyte of braces, delay the trainer."""
    hangs = [(rf"\boxed{{{n}^{{9^{{9^{{9}}}}}}}}", "42") for n in range(2, 2002)]
    braces = [("{}" * (MEGABYTE // 2), "42")] * 1024
    held_up_s = {}
    with VerifierPool(workers, 5.0, budget_s=budget_s) as pool:
        pool.judge_all(HONEST)
        for name, items in {"hangs": hangs, "braces": braces}.items():
            begun = time.monotonic()
            pool.judge_all(items)
            held_up_s[name] = round(time.monotonic() - begun, 2)
    return {"budget_s": budget_s, **held_up_s}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Judge hostile completions; prints JSON.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=1.0)
    options = parser.parse_args(arguments)
    result = fuzz(options.count, options.seed, options.workers, options.timeout_s)
    result["batch_held_up_s"] = budget(options.workers, budget_s=10.0)
    print(json.dumps(result, indent=2))
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main())
