"""Judging many completions in processes that can be killed: the trainer waits for no answer for ever."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from megatron_rapo.rewards.boxed import last_boxed
from megatron_rapo.rewards.process import WorkerDied, WorkerLate, WorkerProcess, wait_any
from megatron_rapo.rewards.verify import judge_plainly
from megatron_rapo.types import Outcome, Verdict

WORKER_MEMORY_BYTES = 2**30
"""Address space of one worker: far above honest work (0.25 GiB), below what hurts the node."""

MAX_FAILED_STARTS = 3
"""Workers lost in a row before any was ready; then verification cannot work at all."""

_DIED = "died"  # what a worker's end is beside the outcomes that it replies with


class VerifierPool:
    """`workers` processes with a deadline of `timeout_s` seconds for each answer, and of `budget_s` for each call.

    Starting is asynchronous: the constructor returns at once, and the start-up of a worker counts
    against no answer. A worker that is late is killed, and its answer is TIMEOUT. An answer whose worker
    dies is tried once more (something else may have killed it); the second time it is UNPARSABLE. Lost
    workers are replaced. Not thread-safe.
    """

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        *,
        budget_s: float = math.inf,
        memory_bytes: int = WORKER_MEMORY_BYTES,
    ) -> None:
        if workers < 1 or timeout_s <= 0 or budget_s <= 0:
            raise ValueError(
                f"workers={workers}, timeout_s={timeout_s}, budget_s={budget_s}: nothing could be judged; raise them "
                "above 0."
            )
        self._timeout_s = timeout_s
        self._budget_s = budget_s
        self._memory_bytes = memory_bytes
        self._failed_starts = 0
        self._was_ready = False  # any of the workers, at any time
        self._workers = [self._start() for _ in range(workers)]

    def judge_all(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (completion, reference answer) pairs, in their order.

        Equal answers to equal references are judged once, so they get equal verdicts. What needs no mathematics is
        judged here and never waits for a worker; of the rest each worker has one answer at a time. What is not judged
        after `budget_s` seconds is TIMEOUT (the start of a pool's first worker is waited for beyond them). Raises
        RuntimeError when no worker can be started, or after `close`.
        """
        if not self._workers:
            raise RuntimeError("the verifier pool is closed; make a new one.")
        until = time.monotonic() + self._budget_s
        contents: list[str | None] = []
        plain: dict[tuple[str, str], Outcome | None] = {}
        for completion, answer in items:
            if time.monotonic() >= until:
                break
            contents.append(content := last_boxed(completion))
            if content is not None and (content, answer) not in plain:
                plain[content, answer] = judge_plainly(content, answer)
        hard = [box for box, outcome in plain.items() if outcome is None]
        outcomes = {box: outcome for box, outcome in plain.items() if outcome is not None}
        outcomes |= dict(zip(hard, self._judge_hard(hard, until), strict=True))
        verdicts = [
            Verdict(outcome=Outcome.NO_ANSWER, formatted=False)
            if content is None
            else Verdict(outcome=outcomes[content, answer], formatted=True)
            for content, (_, answer) in zip(contents, items, strict=False)
        ]
        return verdicts + [Verdict(outcome=Outcome.TIMEOUT, formatted=False)] * (len(items) - len(contents))

    def close(self) -> None:
        """Kill and reap the workers; a second call does nothing."""
        while self._workers:
            self._workers.pop().kill()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the present workers."""
        return tuple(worker.pid for worker in self._workers)

    def _judge_hard(self, boxes: Sequence[tuple[str, str]], until: float) -> list[Outcome]:
        """Outcomes of answers that need a worker; TIMEOUT for what is not there at `until` (`time.monotonic()`)."""
        outcomes: dict[int, Outcome] = {}
        waiting = deque(range(len(boxes)))
        crashed: set[int] = set()  # answers that have cost a worker
        if boxes:
            until += self._await_first_worker()
        try:
            while len(outcomes) < len(boxes) and time.monotonic() < until:
                for slot, worker in enumerate(self._workers):
                    job = worker.job  # which the poll clears
                    reply = self._poll(slot)
                    if job is not None and reply == _DIED and job not in crashed:
                        crashed.add(job)
                        waiting.appendleft(job)
                    elif job is not None and reply is not None:
                        outcomes[job] = Outcome.UNPARSABLE if reply == _DIED else Outcome(reply)
                    worker = self._workers[slot]
                    if worker.idle and waiting:
                        worker.assign(waiting[0], *boxes[waiting.popleft()])
                if len(outcomes) < len(boxes):
                    wait_any(self._workers, until)
        finally:  # out of time or interrupted: a late reply must not pass for one of the next call
            for slot, worker in enumerate(self._workers):
                if worker.job is not None:
                    self._replace(slot)
        return [outcomes.get(job, Outcome.TIMEOUT) for job in range(len(boxes))]

    def _await_first_worker(self) -> float:
        """Wait until one of them has been ready; the seconds that it took, 0 but for a pool's first time."""
        started = time.monotonic()
        while not self._was_ready:
            wait_any(self._workers, math.inf)
            for slot in range(len(self._workers)):
                self._poll(slot)
        return time.monotonic() - started

    def _poll(self, slot: int) -> str | None:
        """The outcome of the job of the worker in `slot` once there is one, or that it died; lost workers are replaced.

        Of a worker without a job, what it gives back means nothing.
        """
        worker = self._workers[slot]
        try:
            reply = worker.poll()
        except WorkerLate:
            self._replace(slot)
            return Outcome.TIMEOUT.value
        except WorkerDied:
            self._replace(slot)
            return _DIED
        if worker.ready:
            self._failed_starts = 0
            self._was_ready = True
        return reply

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self._timeout_s, self._memory_bytes)

    def _replace(self, slot: int) -> None:
        """Kill the worker in `slot`, dead or alive, and start another."""
        lost = self._workers[slot]
        said = lost.kill()
        self._failed_starts += not lost.ready
        if self._failed_starts == MAX_FAILED_STARTS:
            del self._workers[slot]
            self.close()
            raise RuntimeError(
                f"{MAX_FAILED_STARTS} verifier processes in a row died or hung while starting; mend what the last "
                f"one said:\n{said or '(nothing)'}"
            )
        self._workers[slot] = self._start()
