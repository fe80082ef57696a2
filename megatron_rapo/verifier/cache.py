"""Outcomes that workers have found, kept for all later batches: models repeat themselves, and problems come again."""

from __future__ import annotations

from collections import OrderedDict

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.worker_process import Job

MAX_ENTRIES = 100_000
MAX_CHARS = 1_000
"""Longest answer and reference together that are kept: a full cache takes 0.2 GB at most, and some 20 MB mostly."""


class OutcomeCache:
    """Outcomes by answer and reference; the one that was asked for longest ago goes first.

    A TIMEOUT is not kept: it says how busy the machine was, and nothing about the answer.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._outcomes: OrderedDict[Job, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, job: Job) -> Outcome | None:
        """Return what is known about `job`."""
        outcome = self._outcomes.get(job)
        if outcome is not None:
            self._outcomes.move_to_end(job)
        return outcome

    def put(self, job: Job, outcome: Outcome) -> None:
        """Keep the outcome of `job`, unless it is a TIMEOUT or the texts are long."""
        if outcome is Outcome.TIMEOUT or len(job[0]) + len(job[1]) > MAX_CHARS:
            return
        self._outcomes[job] = outcome
        if len(self._outcomes) > self._max_entries:
            self._outcomes.popitem(last=False)
