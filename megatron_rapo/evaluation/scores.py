"""Compute a model's scores from its samples, and write and read the JSON file of scores. No torch.

docs/evaluation.md describes the format. `samples_per_problem`, `problems` and `bootstrap` determine all other numbers,
for any k. A comparison reads only those and computes the rest again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_rapo.errors import InputError
from megatron_rapo.evaluation.answers import count_votes
from megatron_rapo.evaluation.estimators import problems_majority_at_k, problems_pass_at_k
from megatron_rapo.evaluation.samples import ProblemSamples
from megatron_rapo.evaluation.statistics import bootstrap_interval
from megatron_rapo.runtime.atomic_write import explained, write_text_atomically
from megatron_rapo.types import Outcome

FORMAT: Final = "megatron_rapo scores 2"
SHOWN_CHARS = 200  # longest answer in the file
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Interval = tuple[float, float]


class ScoresError(InputError):
    """A file of scores cannot be read or written, or two files cannot be compared."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Score(Record):
    """A mean over problems and its confidence interval."""

    value: float
    interval: Interval


class Bootstrap(Record):
    """Settings of random resampling. The seed is fixed, so the same samples always give the same scores."""

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def intervals(self, values: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Return the interval of each metric's mean over problems. All metrics use the same resampled problems."""
        values_PK = np.stack(list(values.values()), axis=1)
        ends = bootstrap_interval(values_PK, level=self.level, resamples=self.resamples, seed=self.seed)
        return {name: (float(low), float(high)) for name, (low, high) in zip(values, ends, strict=True)}

    def scores(self, values: Mapping[str, np.ndarray]) -> dict[str, Score]:
        intervals = self.intervals(values)
        return {name: Score(value=float(of_P.mean()), interval=intervals[name]) for name, of_P in values.items()}


class Vote(Record):
    """One of the different answers to a problem."""

    answer: str  # normalised and shortened
    count: PositiveCount
    right: bool


class ProblemScore(Record):
    """One problem and the counts of its samples."""

    id: str
    problem: str
    answer: str
    correct: Count
    votes: tuple[Vote, ...]  # the most frequent first
    verdicts: dict[str, PositiveCount]
    completion_tokens: Count  # of all samples
    truncated: Count

    @classmethod
    def of(cls, sampled: ProblemSamples) -> ProblemScore:
        samples = sampled.samples
        right = [sample.verdict == Outcome.CORRECT.value for sample in samples]
        votes = count_votes([sample.answer for sample in samples], right)
        return cls(
            id=sampled.id,
            problem=sampled.problem,
            answer=sampled.answer,
            correct=sum(right),
            votes=tuple(
                Vote(answer=text[:SHOWN_CHARS], count=count, right=is_right) for text, count, is_right in votes
            ),
            verdicts=dict(Counter(sample.verdict for sample in samples)),
            completion_tokens=sum(sample.length for sample in samples),
            truncated=sum(sample.truncated for sample in samples),
        )

    @property
    def solved(self) -> bool:
        return self.correct > 0


class Scores(Record):
    """The scores of a model: the content of the file."""

    format: Literal["megatron_rapo scores 2"] = FORMAT
    model: str
    data: str
    left_out: Count
    sampled_with: dict[str, str | int | float | bool | list[str] | list[int]]  # samples.SampledWith
    samples_per_problem: PositiveCount
    scores: dict[str, Score]
    bootstrap: Bootstrap
    completion_tokens: float  # mean of a completion
    truncated: float  # share of completions stopped by the length limit
    verdicts: dict[str, Count]
    problems: Annotated[tuple[ProblemScore, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Scores:
        n = self.samples_per_problem
        for i, problem in enumerate(self.problems):
            for name, count in (("correct", problem.correct), ("votes", sum(vote.count for vote in problem.votes))):
                if count > n:
                    raise ValueError(f"problems.{i}.{name}={count}: more than samples_per_problem={n}")
        return self

    @classmethod
    def of(cls, problems: Sequence[ProblemScore], samples_per_problem: int, k: Sequence[int], **about: Any) -> Scores:
        """Compute the scores. `about` has the fields that say where they come from."""
        bootstrap, completions = Bootstrap(), samples_per_problem * len(problems)
        return cls(
            samples_per_problem=samples_per_problem,
            scores=bootstrap.scores(metric_values(problems, samples_per_problem, k, seed=bootstrap.seed)),
            bootstrap=bootstrap,
            completion_tokens=sum(problem.completion_tokens for problem in problems) / completions,
            truncated=sum(problem.truncated for problem in problems) / completions,
            verdicts={o.value: sum(problem.verdicts.get(o.value, 0) for problem in problems) for o in Outcome},
            problems=tuple(problems),
            **about,
        )

    def values(self, k: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the values [P] of each metric. No k may exceed `samples_per_problem`."""
        return metric_values(self.problems, self.samples_per_problem, k, seed=self.bootstrap.seed)

    @property
    def k(self) -> tuple[int, ...]:
        """Return every k that the file has scores for."""
        return tuple(int(name.removeprefix("pass@")) for name in self.scores if name.startswith("pass@"))

    def means(self, *kinds: str) -> dict[str, float]:
        """Return the mean over problems of each metric whose name begins with one of `kinds`."""
        return {name: score.value for name, score in self.scores.items() if name.startswith(kinds)}

    def scalars(self) -> dict[str, float]:
        """Return the numbers that a run records."""
        lengths = {"completion_tokens": self.completion_tokens, "truncated": self.truncated}
        return self.means("pass@", "maj@") | lengths

    def save(self, path: Path) -> None:
        """Write the file atomically, with one line for each problem. Raises ScoresError."""
        content = self.model_dump(mode="json")
        lines = [json.dumps(problem) for problem in content.pop("problems")]
        head = json.dumps(content, indent=2).removesuffix("\n}")
        text = head + ',\n  "problems": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, text)
        except OSError as error:
            raise ScoresError(f"{path}: {explained(error, path.parent)}") from None

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read a file that `save` wrote. Raises ScoresError for any other."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ScoresError(f"{path}: cannot be read ({error.strerror}); {_WHAT_TO_GIVE}") from None
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
            raise ScoresError(f"{path}: not JSON ({error}); {_WHAT_TO_GIVE}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise ScoresError(f"{path}: format={found!r}: not {FORMAT!r}; {_WHAT_TO_GIVE}")
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            raise ScoresError(f"{path}: {_explain(error)}; write it again with evaluate --output.") from None


_WHAT_TO_GIVE = "name a .json file of scores that `evaluate --output` wrote beside its samples."


def metric_values(
    problems: Sequence[ProblemScore], samples_per_problem: int, k: Sequence[int], *, seed: int
) -> dict[str, np.ndarray]:
    """Return the values [P] of avg, of pass@k for each k and of maj@k for each k > 1 (maj@1 equals pass@1)."""
    n, correct = samples_per_problem, [problem.correct for problem in problems]
    votes = [[(vote.count, vote.right) for vote in problem.votes] for problem in problems]
    voting = [each for each in k if each > 1]
    passed_PK = problems_pass_at_k(n, correct, k)
    majority_PK = problems_majority_at_k(n, votes, voting, seed=seed)
    values = {"avg": np.array(correct) / n}
    values |= {f"pass@{each}": passed_PK[:, i] for i, each in enumerate(k)}
    return values | {f"maj@{each}": majority_PK[:, i] for i, each in enumerate(voting)}


def _explain(error: ValidationError) -> str:
    """Return the first fault as `field=value: reason`."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # the message of `_check`
        return str(first["ctx"]["error"])
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{name}: is missing"
    return f"{name}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
