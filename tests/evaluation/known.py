"""Make evaluations with known counts, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rapo.evaluation.comparison import Evaluated
from megatron_rapo.evaluation.samples import ProblemSamples, SampledWith
from megatron_rapo.evaluation.scores import ProblemScore, Scores
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Verdict
from megatron_rapo.verifier import extractor

C, W, N, U, T = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNPARSABLE, Outcome.TIMEOUT
SAMPLED_WITH = SampledWith(
    weights="3f",
    problems="9a",
    template="plain",
    stop=["Q:"],
    stop_token_ids=[],
    dtype="float32",
    fp8=False,
    samples_per_problem=4,
    temperature=1.0,
    top_p=0.9,
    max_completion_tokens=96,
    seed=3,
)


def problem(name: str, text: str = "1+1=", answer: str = "2") -> Problem:
    return Problem(id=name, text=text, answer=answer)


def group(name: str, answers: Sequence[str | None], outcomes: Sequence[Outcome], truncated: int = 0) -> Group:
    """Make a judged group. Completion i has i + 1 tokens, and the first `truncated` completions are truncated."""
    completions = tuple(
        Completion(
            token_ids=np.arange(i + 1, dtype=np.int32),
            logprobs=np.zeros(i + 1, np.float32),
            text="?" if answer is None else rf"so \boxed{{{answer}}}",
            truncated=i < truncated,
        )
        for i, answer in enumerate(answers)
    )
    verdicts = tuple(Verdict(outcome=o, formatted=o is not N) for o in outcomes)
    prompt = Prompt(problem=problem(name), text="1+1=\n", token_ids=(5, 6))
    return Group(prompt=prompt, completions=completions, verdicts=verdicts)


GROUPS = [
    group("a", ["2", "02", "3", None], [C, C, W, N]),
    group("b", ["3", "?!", "3.0", None], [W, U, T, N], truncated=1),
    group("a", ["2", "2", "2", "2"], [C, C, C, C], truncated=2),  # an id may come twice
]


def sampled(groups: Sequence[Group] = GROUPS) -> list[ProblemSamples]:
    return [ProblemSamples.of(i, g, [10 * i + j for j in range(4)], extractor("boxed")) for i, g in enumerate(groups)]


def scores_of(problems: Sequence[ProblemScore], n: int, k: Sequence[int], **about: Any) -> Scores:
    defaults = {"model": "models/base", "data": "held.jsonl", "left_out": 0, "sampled_with": asdict(SAMPLED_WITH)}
    return Scores.of(problems, n, k, **defaults | about)


def right_of(n: int, *correct: int, k: Sequence[int] = (1,), **about: Any) -> Scores:
    """Make scores of problems p0, p1, ... with these numbers of right answers among `n`. The others have none."""
    problems = [
        ProblemScore.of(
            ProblemSamples.of(
                i, group(f"p{i}", ["2"] * c + [None] * (n - c), [C] * c + [N] * (n - c)), range(n), extractor("boxed")
            )
        ).model_copy(update={"problem": f"{i}+{i}=", "answer": str(2 * i)})
        for i, c in enumerate(correct)
    ]
    return scores_of(problems, n, k, **about)


def evaluated(scores: Scores, path: str = "base.json") -> Evaluated:
    return Evaluated(path=Path(path), scores=scores)
