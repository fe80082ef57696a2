"""Judging many completions in processes that can be killed: the trainer waits for no answer for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import TracebackType

from megatron_rapo.rewards.boxed import last_boxed
from megatron_rapo.rewards.process import WorkerDied, WorkerLate, WorkerProcess, wait_any
from megatron_rapo.types import Outcome, Verdict

WORKER_MEMORY_BYTES = 4 * 2**30
"""Address space of one worker: far above honest work (0.25 GiB), below what hurts the node."""

MAX_FAILED_STARTS = 3
"""Workers lost in a row before any was ready; then verification cannot work at all."""


class VerifierPool:
    """`workers` processes with a deadline of `timeout_s` seconds for each answer.

    Starting is asynchronous: the constructor returns at once, and the start-up of a worker counts
    against no answer. A worker that is late is killed, and its answer is TIMEOUT. An answer whose worker
    dies is tried once more (something else may have killed it); the second time it is UNPARSABLE. Lost
    workers are replaced. Not thread-safe.
    """

    def __init__(self, workers: int, timeout_s: float, *, memory_bytes: int = WORKER_MEMORY_BYTES) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(f"workers={workers}, timeout_s={timeout_s}: nothing could be judged; raise them above 0.")
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._failed_starts = 0
        self._workers = [self._start() for _ in range(workers)]

    def judge_all(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (completion, reference answer) pairs, in their order.

        Equal answers to equal references are judged once, so they get equal verdicts. Raises
        RuntimeError when no worker can be started, or after `close`.
        """
        if not self._workers:
            raise RuntimeError("the verifier pool is closed; make a new one.")
        boxes = [(last_boxed(completion), answer) for completion, answer in items]
        to_judge = list(dict.fromkeys((content, answer) for content, answer in boxes if content is not None))
        outcomes = dict(zip(to_judge, self._judge_boxes(to_judge), strict=True))
        return [
            Verdict(outcome=Outcome.NO_ANSWER, formatted=False)
            if content is None
            else Verdict(outcome=outcomes[content, answer], formatted=True)
            for content, answer in boxes
        ]

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

    def _judge_boxes(self, boxes: Sequence[tuple[str, str]]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = deque(range(len(boxes)))
        crashed: set[int] = set()  # answers that have cost a worker
        try:
            while len(outcomes) < len(boxes):
                for slot, worker in enumerate(self._workers):
                    job = worker.job  # poll() clears it with the reply
                    try:
                        reply = worker.poll()
                    except WorkerLate:
                        self._replace(slot)
                        if job is not None:
                            outcomes[job] = Outcome.TIMEOUT
                    except WorkerDied:
                        self._replace(slot)
                        if job in crashed:
                            outcomes[job] = Outcome.UNPARSABLE
                        elif job is not None:
                            crashed.add(job)
                            waiting.appendleft(job)
                    else:
                        if worker.ready:
                            self._failed_starts = 0
                        if job is not None and reply is not None:
                            outcomes[job] = Outcome(reply)
                        if worker.idle and waiting:
                            worker.assign(waiting[0], *boxes[waiting.popleft()])
                if len(outcomes) < len(boxes):
                    wait_any(self._workers)
        finally:  # interrupted: a late reply must not pass for one of the next call
            for slot, worker in enumerate(self._workers):
                if worker.job is not None:
                    self._replace(slot)
        return [outcomes[job] for job in range(len(boxes))]

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
