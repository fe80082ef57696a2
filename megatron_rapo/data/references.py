"""Find reference answers that the verifier cannot parse and so can only compare as text."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_rapo.types import Outcome
from megatron_rapo.verifier import VerifierPool, last_boxed
from megatron_rapo.verifier.verify import MAX_ANSWER_CHARS, reads_as_prose
from megatron_rapo.verifier.worker_count import MAX_WORKERS, usable_cores

TIMEOUT_S = 5.0
"""Deadline of one answer, seconds. Equals the default of reward.timeout_s."""


def unparsable(answers: Sequence[str]) -> dict[str, Outcome]:
    """Return the `answers` that the verifier cannot parse, or not in time, with their outcomes.

    Answers that mix words and formulas are found by their words. The others are judged as wrong answers to another
    problem, because then the verifier has to parse them.
    """
    every = [answer for answer in dict.fromkeys(answers) if not answer.isdecimal()]
    outcomes = {answer: Outcome.UNPARSABLE for answer in every if _is_text(answer)}
    outcomes |= _judged([answer for answer in every if answer not in outcomes])
    return {answer: outcomes[answer] for answer in every if answer in outcomes}


def _is_text(answer: str) -> bool:
    """Return whether `answer` is empty, would close the box around it, or is prose."""
    return last_boxed(_boxed(answer)) == "" or (len(answer) <= MAX_ANSWER_CHARS and reads_as_prose(answer))


def _boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def _judged(doubtful: Sequence[str]) -> dict[str, Outcome]:
    if not doubtful:
        return {}
    with VerifierPool(min(MAX_WORKERS, usable_cores()), TIMEOUT_S) as pool:
        verdicts = pool.judge_all([(_boxed(answer), "0") for answer in doubtful])
    read = (Outcome.CORRECT, Outcome.WRONG, Outcome.UNEVALUATED)
    return {a: verdict.outcome for a, verdict in zip(doubtful, verdicts, strict=True) if verdict.outcome not in read}
