"""Keep a fixed number of verifier processes running: kill late ones and replace lost ones."""

from __future__ import annotations

import math
import time

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.worker_process import WorkerDied, WorkerLate, WorkerProcess, wait_any

MAX_FAILED_STARTS = 3
"""After this many failed starts without a successful one, verification cannot work and the run ends."""

DIED = "died"
"""Result of `Workers.poll` for a worker that died; the other results are values of Outcome."""


class Workers:
    """`count` processes with a deadline of `timeout_s` seconds for each answer.

    Attributes:
        present: the current processes; empty after `close`.
    """

    def __init__(self, count: int, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._failed_starts = 0  # since a worker was last seen ready
        self._was_ready = False  # whether any worker was ready at any time
        self.present = [self._start() for _ in range(count)]

    def await_first(self) -> float:
        """Wait until a worker has been ready once. Return the seconds waited; about 0 after the first time."""
        started = time.monotonic()
        while not self._was_ready:
            wait_any(self.present, math.inf)
            for slot in range(len(self.present)):
                self.poll(slot)
        return time.monotonic() - started

    def poll(self, slot: int) -> str | None:
        """Poll the worker in `slot`. Return its job's outcome, DIED, or None if there is no result yet.

        Replaces a worker that died or is late. Ignore the result for a worker without a job. Raises RuntimeError when
        no worker can be started.
        """
        worker = self.present[slot]
        try:
            reply = worker.poll()
        except WorkerLate:
            self._replace(slot)
            return Outcome.TIMEOUT.value
        except WorkerDied:
            self._replace(slot)
            return DIED
        if worker.ready:
            self._failed_starts = 0
            self._was_ready = True
        return reply

    def release(self) -> None:
        """Replace all workers that have a job, and discard their results."""
        for slot, worker in enumerate(self.present):
            if worker.job is not None:
                self._replace(slot)

    def close(self) -> None:
        """Kill and reap the workers. A second call does nothing."""
        while self.present:
            self.present.pop().kill()

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self._timeout_s, self._memory_bytes)

    def _replace(self, slot: int) -> None:
        """Kill the worker in `slot` (it may be dead already) and start another."""
        lost = self.present[slot]
        stderr = lost.kill()
        self._failed_starts += not lost.ready
        if self._failed_starts == MAX_FAILED_STARTS:
            del self.present[slot]
            self.close()
            raise RuntimeError(
                f"{MAX_FAILED_STARTS} verifier processes in a row died or hung while starting; fix what the last one "
                f"wrote to stderr:\n{stderr or '(nothing)'}"
            )
        self.present[slot] = self._start()
