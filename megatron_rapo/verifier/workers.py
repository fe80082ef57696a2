"""A number of verifier processes that is kept: who is late is killed, who is lost is replaced."""

from __future__ import annotations

import math
import time

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.worker_process import WorkerDied, WorkerLate, WorkerProcess, wait_any

MAX_FAILED_STARTS = 3
"""Workers lost in a row before any was ready; then verification cannot work at all."""

DIED = "died"
"""What a worker's end is beside the outcomes that it replies with."""


class Workers:
    """`count` processes with a deadline of `timeout_s` seconds for each answer.

    Attributes:
        present: those that there are; none after `close`.
    """

    def __init__(self, count: int, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._failed_starts = 0
        self._was_ready = False  # any of them, at any time
        self.present = [self._start() for _ in range(count)]

    def await_first(self) -> float:
        """Wait until one of them has been ready; the seconds that it took, 0 but for the first time."""
        started = time.monotonic()
        while not self._was_ready:
            wait_any(self.present, math.inf)
            for slot in range(len(self.present)):
                self.poll(slot)
        return time.monotonic() - started

    def poll(self, slot: int) -> str | None:
        """Return the job's outcome from the worker in `slot` once there is one, or that it died. Replace lost workers.

        The result means nothing for a worker without a job. Raises RuntimeError when no worker can be started.
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
        """Kill and reap them; a second call does nothing."""
        while self.present:
            self.present.pop().kill()

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self._timeout_s, self._memory_bytes)

    def _replace(self, slot: int) -> None:
        """Kill the worker in `slot`, dead or alive, and start another."""
        lost = self.present[slot]
        said = lost.kill()
        self._failed_starts += not lost.ready
        if self._failed_starts == MAX_FAILED_STARTS:
            del self.present[slot]
            self.close()
            raise RuntimeError(
                f"{MAX_FAILED_STARTS} verifier processes in a row died or hung while starting; mend what the last "
                f"one said:\n{said or '(nothing)'}"
            )
        self.present[slot] = self._start()
