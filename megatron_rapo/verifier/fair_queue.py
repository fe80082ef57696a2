"""Answers that wait for a worker, in an order under which no problem's answers use up the time of the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from megatron_rapo.verifier.worker_process import Job


class FairQueue:
    """Jobs whose references take turns, in the order in which they came; jobs of one reference keep theirs.

    When the time of a batch runs out, the jobs that are left are TIMEOUT. In the order of submission those would be the
    answers that were finished last, so mostly the longest, and one problem with many slow answers would cost all behind
    it their verdicts.
    """

    def __init__(self) -> None:
        self._by_reference: dict[str, deque[Job]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._by_reference.values()))

    def __bool__(self) -> bool:
        return bool(self._by_reference)

    def __iter__(self) -> Iterator[Job]:
        for jobs in self._by_reference.values():
            yield from jobs

    def append(self, job: Job) -> None:
        """Add a job behind those of its reference."""
        self._by_reference.setdefault(job[1], deque()).append(job)

    def push(self, job: Job) -> None:
        """Put back a job that was taken, before those of its reference."""
        self._by_reference.setdefault(job[1], deque()).appendleft(job)

    def pop(self) -> Job:
        """Take the next job."""
        reference = next(iter(self._by_reference))
        jobs = self._by_reference.pop(reference)
        job = jobs.popleft()
        if jobs:
            self._by_reference[reference] = jobs
        return job

    def keep(self, wanted: Collection[Job]) -> None:
        """Drop all jobs but the wanted ones."""
        kept = [job for job in self if job in wanted]
        self._by_reference = {}
        for job in kept:
            self.append(job)
