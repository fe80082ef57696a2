"""Keep outcomes for later batches: models repeat their answers, and the same problems return."""

from __future__ import annotations

from collections import OrderedDict

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.worker_process import Job

MAX_ENTRIES = 100_000
MAX_CHARS = 1_000
"""Longest answer and reference together that are cached. A full cache takes about 20 MB, and 0.2 GB at most."""


class OutcomeCache:
    """Least-recently-used cache of outcomes by answer and reference.

    A TIMEOUT is not cached: it says how busy the machine was, and nothing about the answer.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._outcomes: OrderedDict[Job, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, job: Job) -> Outcome | None:
        """Return the cached outcome of `job`, or None."""
        outcome = self._outcomes.get(job)
        if outcome is not None:
            self._outcomes.move_to_end(job)
        return outcome

    def put(self, job: Job, outcome: Outcome) -> None:
        """Cache the outcome of `job`, unless it is a TIMEOUT or the texts are too long."""
        if outcome is Outcome.TIMEOUT or len(job[0]) + len(job[1]) > MAX_CHARS:
            return
        self._outcomes[job] = outcome
        if len(self._outcomes) > self._max_entries:
            self._outcomes.popitem(last=False)
