"""Judge many completions in processes that can be killed, so that the trainer never waits forever for an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_rapo.types import Verdict
from megatron_rapo.verifier.answers import extractor
from megatron_rapo.verifier.cache import OutcomeCache
from megatron_rapo.verifier.judging import Judging
from megatron_rapo.verifier.workers import Workers

WORKER_MEMORY_BYTES = 2**30
"""Limit on the address space of one worker. Normal work needs 0.25 GiB."""


class VerifierPool:
    """A pool of `workers` verifier processes.

    Each answer has a deadline of `timeout_s` seconds, each batch a budget of `budget_s` seconds (see `Judging`).
    `answer` is the form in which completions give their answers (`reward.answer`).

    The constructor returns at once while the workers start; their start counts against no answer. A late worker is
    killed, and its answer is TIMEOUT. If a worker dies, its answer is tried once more, because something else may have
    killed the worker; the second time it is UNPARSABLE. Lost workers are replaced. The pool keeps outcomes for later
    batches (cache.py). Not thread-safe.
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
        """Kill and reap the workers. A second call does nothing."""
        self._workers.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the current workers."""
        return tuple(worker.pid for worker in self._workers.present)
