"""Queue the answers that wait for a worker, so that no problem uses up the time of the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from megatron_rapo.verifier.worker_process import Job


class FairQueue:
    """Jobs in round-robin order of their reference answers; jobs with the same reference stay in submission order.

    Jobs that are left when a batch runs out of time become TIMEOUT. In submission order these would be the answers
    that were finished last, which are mostly the longest. Also, one problem with many slow answers would cost all
    later problems their verdicts.
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
        """Add a job after the others of its reference."""
        self._by_reference.setdefault(job[1], deque()).append(job)

    def push(self, job: Job) -> None:
        """Put back a job that was taken, before the others of its reference."""
        self._by_reference.setdefault(job[1], deque()).appendleft(job)

    def pop(self) -> Job:
        """Take the next job, and move its reference to the end of the round."""
        reference = next(iter(self._by_reference))
        jobs = self._by_reference.pop(reference)
        job = jobs.popleft()
        if jobs:
            self._by_reference[reference] = jobs
        return job

    def keep(self, wanted: Collection[Job]) -> None:
        """Drop all jobs that are not in `wanted`."""
        kept = [job for job in self if job in wanted]
        self._by_reference = {}
        for job in kept:
            self.append(job)
