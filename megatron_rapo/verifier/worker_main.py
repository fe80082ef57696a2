"""Run a verifier process: read JSON lines `[content, answer]` from stdin and write `[outcome, seconds]` for each.

worker_process.py starts it. It writes "ready" when all slow imports are done. It ends when its stdin closes, that is,
when the process that started it ends.
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
    """Answer until stdin ends, within `memory_bytes` of address space.

    Also ends after an answer at which memory use exceeds half of the limit. SymPy keeps some of that memory, and this
    must not make a later answer fail.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of a library must not be mistaken for a reply
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    judge_parsed(r"\frac{1}{2}", "1")  # build the parser's tables (about 0.5 s) before any deadline starts
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps(READY), file=replies)
    for line in sys.stdin:
        # The parent kills a late worker. If the parent is dead, the kernel's alarm ends this process instead, even
        # inside a C call.
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
