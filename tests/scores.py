"""Evaluations with known counts, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rapo.scores import Base, Evaluation, SampledWith, SavedEvaluation
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Verdict

SAMPLING = SampledWith(template="plain", dtype="float32", temperature=1.0, top_p=0.9, max_completion_tokens=96, seed=3)


def problem(name: str, text: str = "1+1=", answer: str = "2") -> Problem:
    return Problem(id=name, text=text, answer=answer)


def group(name: str, outcomes: Sequence[Outcome], lengths: Sequence[int], truncated: int = 0) -> Group:
    """A judged group; the first `truncated` completions are."""
    completions = tuple(
        Completion(
            token_ids=np.arange(length, dtype=np.int32),
            logprobs=np.zeros(length, np.float32),
            text="",
            truncated=i < truncated,
        )
        for i, length in enumerate(lengths)
    )
    verdicts = tuple(Verdict(outcome=o, formatted=o is not Outcome.NO_ANSWER) for o in outcomes)
    rewards = tuple(float(o is Outcome.CORRECT) for o in outcomes)
    prompt = Prompt(problem=problem(name), text="1+1=", token_ids=(5, 6))
    return Group(prompt=prompt, completions=completions, verdicts=verdicts, rewards=rewards)


C, W, N, U, T = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNPARSABLE, Outcome.TIMEOUT
GROUPS = [
    group("a", [C, C, W, N], [1, 2, 3, 4]),
    group("b", [W, U, T, N], [10, 10, 10, 10], truncated=1),
    group("a", [C, C, C, C], [0, 0, 0, 6], truncated=2),  # an id may come twice
]


def right_of(n: int, *correct: int, k: Sequence[int] = (1,)) -> Evaluation:
    """An evaluation of problems p0, p1, ... with these numbers of right answers among `n`."""
    return Evaluation.of([group(f"p{i}", [C] * c + [W] * (n - c), [1] * n) for i, c in enumerate(correct)], k)


def saved(evaluation: Evaluation, **fields: Any) -> SavedEvaluation:
    """The evaluation as it is written to a file."""
    defaults: dict[str, Any] = {"model": "models/base", "data": "held.jsonl", "left_out": 0, "sampling": SAMPLING}
    return SavedEvaluation(**dict(evaluation), **defaults | fields)


def base(evaluation: Evaluation, **fields: Any) -> Base:
    """The evaluation as one to compare with."""
    return Base(path=Path("base.json"), scores=saved(evaluation, **fields))
