"""Judge a batch of answers while the model still writes others: submit each answer, poll, and wait at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from megatron_rapo.types import Outcome, Verdict
from megatron_rapo.verifier.answers import MAX_READ_CHARS, Extract, is_balanced
from megatron_rapo.verifier.cache import OutcomeCache
from megatron_rapo.verifier.fair_queue import FairQueue
from megatron_rapo.verifier.verify import judge_plainly
from megatron_rapo.verifier.worker_process import Job, wait_any
from megatron_rapo.verifier.workers import DIED, Workers

_NO_ANSWER = Verdict(outcome=Outcome.NO_ANSWER, formatted=False)
_OUT_OF_TIME = Verdict(outcome=Outcome.TIMEOUT, formatted=False)
_TOO_LONG = Verdict(outcome=Outcome.UNPARSABLE, formatted=True)


class Judging:
    """One batch of answers. Create it with `VerifierPool.judging`, which ends the previous batch.

    Equal answers to equal references are judged once, so they get the same verdict. `submit` itself judges an answer
    that needs no mathematics or that an earlier batch has judged. The others wait for a worker: each worker has one
    answer at a time, and problems take turns. The pool's `budget_s` limits the time spent inside the methods of this
    class. Work that the workers do between the calls does not count.
    """

    def __init__(self, workers: Workers, budget_s: float, extract: Extract, cache: OutcomeCache) -> None:
        self._workers, self._left_s, self._extract, self._cache = workers, budget_s, extract, cache
        self._submitted: list[Job | Verdict] = []  # a verdict where there is nothing to judge
        self._outcomes: dict[Job, Outcome] = {}
        self._known: set[Job] = set()  # judged, running or waiting
        self._waiting = FairQueue()
        self._crashed: set[Job] = set()  # jobs whose worker died

    def submit(self, completion: str, answer: str) -> int:
        """Add a completion with its reference answer. Returns its number in the batch: 0, 1, ..."""
        with self._within_budget():
            self._submitted.append(self._job_or_verdict(completion, answer))
        return len(self._submitted) - 1

    def poll(self) -> None:
        """Collect results from the workers and give idle workers their next answers. Does not wait."""
        with self._within_budget():
            self._advance()

    def finish(self, chosen: Sequence[int] | None = None) -> list[Verdict]:
        """Wait for verdicts on the answers with the numbers `chosen` (None: all). Return them in that order.

        The other answers are cancelled. Answers that are not judged when the budget is used up are TIMEOUT. The start
        of a pool's first worker does not count against the budget. Raises RuntimeError when no worker can be started.
        """
        submitted = [self._submitted[number] for number in (range(len(self._submitted)) if chosen is None else chosen)]
        wanted = {job for job in submitted if not isinstance(job, Verdict)}
        self._waiting.keep(wanted)
        with self._within_budget() as until:
            self._wait_for(wanted, until)
        return [
            job
            if isinstance(job, Verdict)
            else Verdict(outcome=self._outcomes.get(job, Outcome.TIMEOUT), formatted=True)
            for job in submitted
        ]

    def _job_or_verdict(self, completion: str, answer: str) -> Job | Verdict:
        if self._left_s <= 0:
            return _OUT_OF_TIME
        content = self._extract(completion)
        if content is None:
            return _NO_ANSWER
        if len(content) > MAX_READ_CHARS or len(answer) > MAX_READ_CHARS:
            return _TOO_LONG
        job = content, answer
        if job not in self._known:
            self._known.add(job)
            outcome = self._judge_here(job)
            if outcome is None:
                self._waiting.append(job)
            else:
                self._outcomes[job] = outcome
        return job

    def _judge_here(self, job: Job) -> Outcome | None:
        """Return the outcome if it needs no worker, else None."""
        content, answer = job
        if not is_balanced(content):  # inside \boxed{}, only the part before the extra brace would be read
            return Outcome.UNPARSABLE
        return judge_plainly(content, answer) or self._cache.get(job)

    def _wait_for(self, wanted: set[Job], until: float) -> None:
        if self._is_open(wanted):
            until += self._workers.await_first()
        try:
            while self._is_open(wanted) and time.monotonic() < until:
                self._advance()
                if self._is_open(wanted):
                    wait_any(self._workers.present, until)
        finally:  # a late reply must not count as a reply to the next batch
            self._workers.release()

    def _is_open(self, wanted: set[Job]) -> bool:
        """Return whether a job in `wanted` is waiting or running."""
        return any(job in wanted for job in chain(self._waiting, (worker.job for worker in self._workers.present)))

    def _advance(self) -> None:
        for slot, worker in enumerate(self._workers.present):
            job = worker.job  # `poll` clears it
            reply = self._workers.poll(slot)
            if job is not None and reply == DIED and job not in self._crashed:
                self._crashed.add(job)
                self._waiting.push(job)
            elif job is not None and reply == DIED:
                self._outcomes[job] = Outcome.UNPARSABLE
            elif job is not None and reply is not None:
                self._outcomes[job] = outcome = Outcome(reply)
                self._cache.put(job, outcome)
            worker = self._workers.present[slot]
            if worker.idle and self._waiting:
                worker.assign(self._waiting.pop())

    @contextmanager
    def _within_budget(self) -> Iterator[float]:
        """Yield the `time.monotonic()` at which the budget ends. Subtract the body's time from the budget."""
        started = time.monotonic()
        try:
            yield started + self._left_s
        finally:
            self._left_s -= time.monotonic() - started
