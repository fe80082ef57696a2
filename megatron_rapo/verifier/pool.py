"""Judging many completions in processes that can be killed: the trainer waits for no answer for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from megatron_rapo.types import Verdict
from megatron_rapo.verifier.answers import extractor
from megatron_rapo.verifier.cache import OutcomeCache
from megatron_rapo.verifier.judging import Judging
from megatron_rapo.verifier.workers import Workers

WORKER_MEMORY_BYTES = 2**30
"""Address space of one worker: far above honest work (0.25 GiB), below what hurts the node."""


class VerifierPool:
    """`workers` processes with a deadline of `timeout_s` seconds for each answer, and of `budget_s` for each batch.

    Starting is asynchronous: the constructor returns at once, and the start-up of a worker counts
    against no answer. A worker that is late is killed, and its answer is TIMEOUT. An answer whose worker
    dies is tried once more (something else may have killed it); the second time it is UNPARSABLE. Lost
    workers are replaced. `answer` is the form in which completions give their answers (`reward.answer`). What workers
    have found is kept for later batches (cache.py). Not thread-safe.
    """

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        *,
        budget_s: float = math.inf,
        memory_bytes: int = WORKER_MEMORY_BYTES,
        answer: str = "boxed",
    ) -> None:
        if workers < 1 or timeout_s <= 0 or budget_s <= 0:
            raise ValueError(
                f"workers={workers}, timeout_s={timeout_s}, budget_s={budget_s}: nothing could be judged; raise them "
                "above 0."
            )
        self._budget_s, self._extract, self._cache = budget_s, extractor(answer), OutcomeCache()
        self._workers = Workers(workers, timeout_s, memory_bytes)

    def judge_all(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return verdicts on a complete batch of (completion, reference answer) pairs, in the same order.

        Raises RuntimeError when no worker can be started, or after `close`.
        """
        judging = self.judging()
        for completion, answer in items:
            judging.submit(completion, answer)
        return judging.finish()

    def judging(self) -> Judging:
        """Start a batch whose items come one by one. Cancel unfinished jobs of the previous batch.

        Raises RuntimeError after `close`.
        """
        if not self._workers.present:
            raise RuntimeError("the verifier pool is closed; make a new one.")
        self._workers.release()
        return Judging(self._workers, self._budget_s, self._extract, self._cache)

    def close(self) -> None:
        """Kill and reap the workers; a second call does nothing."""
        self._workers.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the current workers."""
        return tuple(worker.pid for worker in self._workers.present)
