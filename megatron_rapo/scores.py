"""What a policy scored, two of them compared, and the JSON file that `evaluate --output` writes. No torch.

The file is one object, the fields of `SavedEvaluation`. Below, `{k: ...}` has each k as a string, and `[low, high]` is
a confidence interval (pass_at_k.py).

    format                  "megatron_rapo evaluation 1"
    model, data             model.path and evaluation.data, as they were given
    left_out                number of problems of the data whose prompts were over data.max_prompt_tokens
    sampling                template, dtype, temperature, top_p, max_completion_tokens, seed (run.seed)
    samples_per_problem     n, completions of each problem
    pass_at                 {k: mean over problems}
    pass_at_interval        {k: [low, high]}
    bootstrap               level, resamples and seed of every interval in the file
    mean_completion_tokens
    truncated               share of completions stopped by the length limit
    outcomes                {verdict: number of completions}
    problems                [{id, digest, correct}] in the data's order: the problem's id (ids may repeat), a digest of
                            its text and answer, and how many of its n completions were right
    comparison              null, or with --compare:
        file, model, sampling, samples_per_problem  of the base, as above
        pass_at             {k: the base's mean over problems}
        difference          {k: this model's mean minus the base's}
        difference_interval {k: [low, high]}, problems drawn jointly
        only_this, lost, both, neither              ids of problems with at least one right completion of this model
                            only, of the base only, of both, of neither

Every pass@k, interval and difference follows from `samples_per_problem`, `problems` and `bootstrap`; of a base,
--compare reads the first two and computes the rest anew, for whatever k.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_rapo.errors import InputError
from megatron_rapo.pass_at_k import bootstrap_interval, problems_pass_at_k
from megatron_rapo.types import Group, Outcome, Problem

FORMAT: Final = "megatron_rapo evaluation 1"
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Interval = tuple[float, float]


class ScoresError(InputError):
    """A file of scores that cannot be read, written or compared with."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Bootstrap(_Record):
    """How the intervals are drawn; the seed is fixed, so that the same counts always give the same interval."""

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def interval(self, values_PK: np.ndarray, k: Sequence[int]) -> dict[int, Interval]:
        """k -> interval of the mean of its column."""
        ends = bootstrap_interval(values_PK, level=self.level, resamples=self.resamples, seed=self.seed)
        return {each: (float(low), float(high)) for each, (low, high) in zip(k, ends, strict=True)}


class ProblemScore(_Record):
    """One problem and the number of right completions among `samples_per_problem`."""

    id: str
    digest: str
    correct: Count


class Evaluation(_Record):
    """What a policy scored."""

    samples_per_problem: PositiveCount
    pass_at: dict[PositiveCount, float]  # k -> mean over problems
    pass_at_interval: dict[PositiveCount, Interval]
    bootstrap: Bootstrap
    mean_completion_tokens: float
    truncated: float  # share of completions stopped by the length limit
    outcomes: dict[str, Count]  # verdicts, counted
    problems: Annotated[tuple[ProblemScore, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        for i, problem in enumerate(self.problems):
            if problem.correct > self.samples_per_problem:
                raise ValueError(
                    f"problems.{i}.correct={problem.correct}: more than samples_per_problem={self.samples_per_problem}"
                )
        return self

    @classmethod
    def of(cls, groups: Sequence[Group], k: Sequence[int]) -> Evaluation:
        """Summarise judged groups, all with the same number of completions."""
        n = len(groups[0].completions)
        correct = [sum(v.outcome is Outcome.CORRECT for v in g.verdicts) for g in groups]
        completions = [c for g in groups for c in g.completions]
        verdicts = [v.outcome for g in groups for v in g.verdicts]
        values_PK, bootstrap = problems_pass_at_k(n, correct, k), Bootstrap()
        return cls(
            samples_per_problem=n,
            problems=tuple(
                ProblemScore(id=g.prompt.problem.id, digest=problem_digest(g.prompt.problem), correct=c)
                for g, c in zip(groups, correct, strict=True)
            ),
            pass_at=_means(values_PK, k),
            pass_at_interval=bootstrap.interval(values_PK, k),
            bootstrap=bootstrap,
            mean_completion_tokens=sum(len(c.token_ids) for c in completions) / len(completions),
            truncated=sum(c.truncated for c in completions) / len(completions),
            outcomes={outcome.value: verdicts.count(outcome) for outcome in Outcome},
        )

    def problems_pass_at(self, k: Sequence[int]) -> np.ndarray:
        """[P, K] pass@k of each problem; no k may be above `samples_per_problem`."""
        return problems_pass_at_k(self.samples_per_problem, [problem.correct for problem in self.problems], k)


class SampledWith(_Record):
    """The settings, beside the weights, that decide what is sampled."""

    template: str
    dtype: str
    temperature: float
    top_p: float
    max_completion_tokens: int
    seed: int


class Comparison(_Record):
    """Another model's scores on the same problems, and what changed from them."""

    file: str
    model: str
    sampling: SampledWith
    samples_per_problem: PositiveCount
    pass_at: dict[PositiveCount, float]  # of the base
    difference: dict[PositiveCount, float]
    difference_interval: dict[PositiveCount, Interval]
    only_this: tuple[str, ...]
    lost: tuple[str, ...]
    both: tuple[str, ...]
    neither: tuple[str, ...]


class SavedEvaluation(Evaluation):
    """An evaluation and where it comes from: the content of the file."""

    format: Literal["megatron_rapo evaluation 1"] = FORMAT
    model: str
    data: str
    left_out: Count
    sampling: SampledWith
    comparison: Comparison | None = None

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises ScoresError."""
        content, partial = self.model_dump(mode="json"), path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({name: content[name] for name in _HEAD} | content, indent=2) + "\n")
            partial.replace(path)
        except OSError as error:
            raise _not_writable(path, error) from None


@dataclass(frozen=True, kw_only=True)
class Base:
    """An earlier evaluation to compare with, and the file that it was read from."""

    path: Path
    scores: SavedEvaluation

    @classmethod
    def read(cls, path: Path) -> Base:
        """Raises ScoresError for anything that `SavedEvaluation.save` would not have written."""
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text)
        except FileNotFoundError:
            raise ScoresError(f"--compare {path}: no such file; {_WHAT_TO_GIVE}") from None
        except OSError as error:
            raise ScoresError(f"--compare {path}: cannot be read ({error.strerror}); {_WHAT_TO_GIVE}") from None
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
            raise ScoresError(f"--compare {path}: not JSON ({error}); {_WHAT_TO_GIVE}") from None
        if not isinstance(content, dict) or "format" not in content:
            raise ScoresError(f'--compare {path}: has no "format", so it holds something else; {_WHAT_TO_GIVE}')
        if content["format"] != FORMAT:
            raise ScoresError(f"--compare {path}: format={content['format']!r}: not {FORMAT!r}; {_WHAT_TO_GIVE}")
        try:
            return cls(path=path, scores=SavedEvaluation.model_validate_json(text))
        except ValidationError as error:
            raise ScoresError(f"--compare {path}: {_explain(error)}; write it again with evaluate --output.") from None

    def check_samples(self, k: Sequence[int]) -> None:
        """Refuse a k above the base's samples per problem. Raises ScoresError."""
        n = self.scores.samples_per_problem
        if max(k) <= n:
            return
        possible = ",".join(str(each) for each in k if each <= n)
        other = f", or pass --k {possible}" if possible else ""
        raise ScoresError(
            f"--compare {self.path}: has {n} samples of each problem, too few for pass@{max(k)}; evaluate the base "
            f"again with evaluation.samples_per_problem >= {max(k)}{other}."
        )

    def check_problems(self, data: Path, problems: Sequence[Problem]) -> None:
        """Refuse other problems, other answers or another order than the base's. Raises ScoresError."""
        digests = [problem_digest(problem) for problem in problems]
        expected = [problem.digest for problem in self.scores.problems]
        if digests == expected:
            return
        differing = [i for i, (a, b) in enumerate(zip(digests, expected, strict=False)) if a != b]
        if not differing:
            how = "one is the start of the other"
        elif (here := problems[differing[0]].id) != (there := self.scores.problems[differing[0]].id):
            how = f"problem {differing[0] + 1} is {here!r} here and {there!r} there"
        else:
            how = f"problem {differing[0] + 1}, {here!r}, has another text or answer"
        raise ScoresError(
            f"--compare {self.path}: has other problems ({len(expected)} of {self.scores.data}, "
            f"{self.scores.left_out} more left out as too long) than this evaluation ({len(digests)} of {data}): "
            f"{how}; evaluate both models on the same problems, with room for all of them in data.max_prompt_tokens."
        )

    def sampled_otherwise(self, sampling: SampledWith, samples_per_problem: int) -> list[str]:
        """What, beside the model, differs between the two, the seed aside; a sentence for each setting."""
        there = {"samples_per_problem": self.scores.samples_per_problem, **dict(self.scores.sampling)}
        here = {"samples_per_problem": samples_per_problem, **dict(sampling)}
        return [
            f"{self.path} was sampled with {name}={there[name]}, this evaluation samples with {here[name]}"
            for name in here
            if name != "seed" and there[name] != here[name]
        ]

    def compare(self, this: Evaluation) -> Comparison:
        """What `this`, of the same problems in the same order, gained and lost; at each k that it has."""
        k = list(this.pass_at)
        base_PK = self.scores.problems_pass_at(k)
        difference_PK = this.problems_pass_at(k) - base_PK
        solved: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (False, True) for b in (False, True)}
        for before, now in zip(self.scores.problems, this.problems, strict=True):
            solved[before.correct > 0, now.correct > 0].append(now.id)
        return Comparison(
            file=str(self.path),
            model=self.scores.model,
            sampling=self.scores.sampling,
            samples_per_problem=self.scores.samples_per_problem,
            pass_at=_means(base_PK, k),
            difference=_means(difference_PK, k),
            difference_interval=this.bootstrap.interval(difference_PK, k),
            only_this=tuple(solved[False, True]),
            lost=tuple(solved[True, False]),
            both=tuple(solved[True, True]),
            neither=tuple(solved[False, False]),
        )


_HEAD = ("format", "model", "data", "left_out", "sampling")  # first in the file, for those who open it
_WHAT_TO_GIVE = "give a JSON file that `evaluate --output` wrote."


def problem_digest(problem: Problem) -> str:
    """64 bits, in hexadecimal, of what makes a problem the same one in another file: its text and its answer."""
    content = json.dumps([problem.text, problem.answer]).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def check_output(path: Path, base: Base | None) -> None:
    """Refuse a place where `SavedEvaluation.save` would fail or replace the base. Makes the folder.

    Raises ScoresError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None
    if path.is_dir():
        raise ScoresError(f"--output {path}: is a folder; name a file in it.")
    if not os.access(path.parent, os.W_OK):
        raise ScoresError(f"--output {path}: its folder is read-only; name a file in another.")
    if base and path.exists() and path.samefile(base.path):
        raise ScoresError(f"--output {path}: is the file of --compare, which would be replaced; name another.")


def _not_writable(path: Path, error: OSError) -> ScoresError:
    return ScoresError(f"--output {path}: cannot be written ({error.strerror}); name another file.")


def _means(values_PK: np.ndarray, k: Sequence[int]) -> dict[int, float]:
    return {each: float(mean) for each, mean in zip(k, values_PK.mean(axis=0), strict=True)}


def _explain(error: ValidationError) -> str:
    """The first thing wrong as `field=value: reason`."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # our own check says it all
        return str(first["ctx"]["error"])
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{name}: not there"
    return f"{name}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
