"""The verifier process: reads `[content, answer]` lines of JSON from stdin, writes `[outcome, seconds]` for each.

Started by process.py. It says "ready" once everything slow is imported, and ends with its stdin, that
is, with the process that started it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time

from megatron_rapo.verifier.verify import judge_parsed

READY = "ready"


def main(timeout_s: float, memory_bytes: int) -> None:
    """Answer until stdin ends; `memory_bytes` bounds the address space.

    Ends also after an answer that took half of it: what SymPy keeps of that must not make another answer fail.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not pass for a reply
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    judge_parsed(r"\frac{1}{2}", "1")  # builds the parser's tables, about 0.5 s, before any deadline runs
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps(READY), file=replies)
    for line in sys.stdin:
        # The parent kills a late worker. Should the parent be dead by then, nobody reads stdin and the
        # kernel's own alarm ends this process, even inside a C call.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout_s + 10)
        started = time.monotonic()
        outcome = judge_parsed(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps([outcome.value, time.monotonic() - started]), file=replies)
        if _peak_memory_bytes() > memory_bytes / 2:
            return


def _peak_memory_bytes() -> int:
    """Return the peak memory of this process alone, in bytes. getrusage would also count its parent process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
