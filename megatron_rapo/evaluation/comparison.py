"""Compare two models' scores on the same problems: what changed, how certain it is, and on which problems. No torch.

docs/evaluation.md describes the tests and the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from megatron_rapo.evaluation.samples import with_defaults
from megatron_rapo.evaluation.scores import Bootstrap, Interval, Record, Score, Scores, ScoresError
from megatron_rapo.evaluation.statistics import mcnemar_p_value, sign_flip_p_values
from megatron_rapo.runtime.atomic_write import explained

FORMAT: Final = "megatron_rapo comparison 1"
Values = dict[str, np.ndarray]  # metric -> [P] of each problem
FLIPS = 10_000  # sign flips of a paired permutation test


class Difference(Record):
    """A metric of two models: means over problems, and the other's minus the base's."""

    base: float
    other: float
    difference: float
    interval: Interval  # paired bootstrap
    p_value: float  # paired permutation test


class Solved(Record):
    """Ids of the problems with at least one right sample."""

    only_other: tuple[str, ...]
    lost: tuple[str, ...]  # by the base only
    both: tuple[str, ...]
    neither: tuple[str, ...]
    p_value: float | None  # McNemar's test; None if one model had more samples, and so more chances


class Part(Record):
    """Both models' scores on the problems that the base never solves ("hard") or on the others ("rest")."""

    problems: tuple[str, ...]  # ids
    base: dict[str, Score]
    other: dict[str, Score]


class Comparison(Record):
    """A base and another model: the content of the file."""

    format: Literal["megatron_rapo comparison 1"] = FORMAT
    base: str  # path of its scores
    other: str
    base_model: str
    other_model: str
    samples_per_problem: tuple[int, int]  # of the base, of the other
    sampled_otherwise: tuple[str, ...]  # sampling settings that differ
    metrics: dict[str, Difference]
    solved: Solved
    hard: Part | None  # None where there is no such problem
    rest: Part | None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A file of scores and its content."""

    path: Path
    scores: Scores

    @classmethod
    def read(cls, path: Path) -> Evaluated:
        return cls(path=path, scores=Scores.read(path))


def check_comparable(base: Evaluated, other: Evaluated) -> None:
    """Check that both files have the same problems and answers in the same order, and the same form of answer.

    Raises ScoresError.
    """
    form_there, form_here = (with_defaults(each.scores.sampled_with)["answer"] for each in (base, other))
    if form_here != form_there:
        raise ScoresError(
            f"{other.path}: reward.answer={form_here}, but {base.path} has {form_there}: they accept different "
            "answers, so a difference says nothing about the models; evaluate both with the same reward.answer."
        )
    ours, theirs = ([(p.problem, p.answer) for p in each.scores.problems] for each in (other, base))
    if ours == theirs:
        return
    differing = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if differing is None:
        how = "one is the start of the other"
    else:
        here, there = (each.scores.problems[differing].id for each in (other, base))
        how = f"problem {differing + 1} is {here!r} in one and {there!r} in the other, or its text differs"
    raise ScoresError(
        f"{other.path}: has other problems ({len(ours)} of {other.scores.data}, {other.scores.left_out} more left out "
        f"as too long) than {base.path} ({len(theirs)} of {base.scores.data}, {base.scores.left_out} more left out): "
        f"{how}; evaluate both models on the same problems, with room for all of them in data.max_prompt_tokens."
    )


def common_k(evaluated: Sequence[Evaluated], chosen: Sequence[int] | None = None) -> list[int]:
    """Return the k to compare at: the chosen ones, or all k in any file that all files have enough samples for.

    Raises ScoresError if a file has too few samples for a chosen k.
    """
    fewest = min(evaluated, key=lambda each: each.scores.samples_per_problem)
    n = fewest.scores.samples_per_problem
    if chosen is None:
        return sorted({k for each in evaluated for k in each.scores.k if k <= n})
    if min(chosen) < 1 or max(chosen) > n:
        raise ScoresError(
            f"--k {','.join(map(str, chosen))}: {fewest.path} has {n} samples of each problem; choose from 1 to {n}, "
            "or evaluate it again with more evaluation.samples_per_problem."
        )
    return sorted(set(chosen))


def compare(base: Evaluated, other: Evaluated, k: Sequence[int]) -> Comparison:
    """Compare two models at each k. Raises ScoresError if their problems differ."""
    check_comparable(base, other)
    before, now = base.scores.values(k), other.scores.values(k)
    solved_P = np.array([problem.solved for problem in base.scores.problems])
    return Comparison(
        base=str(base.path),
        other=str(other.path),
        base_model=base.scores.model,
        other_model=other.scores.model,
        samples_per_problem=(base.scores.samples_per_problem, other.scores.samples_per_problem),
        sampled_otherwise=_sampled_otherwise(base.scores, other.scores),
        metrics=_differences(before, now, base.scores.bootstrap),
        solved=_solved(base.scores, other.scores),
        hard=_part(base.scores, before, now, ~solved_P),
        rest=_part(base.scores, before, now, solved_P),
    )


def save(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the comparisons as a JSON list. Raises ScoresError."""
    content = json.dumps([each.model_dump(mode="json") for each in comparisons], indent=2)
    _write(path, content + "\n", option="--output")


def save_hard(base: Evaluated, path: Path) -> int:
    """Write the problems that `base` never solves to a data file; return their number. Raises ScoresError if 0."""
    hard = [problem for problem in base.scores.problems if not problem.solved]
    if path.suffix != ".jsonl":
        raise ScoresError(f"--hard {path}: writes JSON lines; name a file that ends in .jsonl.")
    if not hard:
        raise ScoresError(f"--hard {path}: {base.path} solves all problems, so there is none to write; leave it out.")
    rows = [{"id": problem.id, "problem": problem.problem, "answer": problem.answer} for problem in hard]
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), option="--hard")
    return len(hard)


def _write(path: Path, text: str, *, option: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")  # not atomic: it may be a pipe, like /dev/stdout
    except OSError as error:
        raise ScoresError(f"{option} {path}: {explained(error, path.parent)}") from None


def _sampled_otherwise(base: Scores, other: Scores) -> tuple[str, ...]:
    before, now = (with_defaults(each.sampled_with) for each in (base, other))
    return tuple(
        f"{name}={before.get(name)} and {value}"
        for name, value in now.items()
        if name not in ("weights", "seed", "problems") and before.get(name) != value
    )


def _differences(before: Values, now: Values, bootstrap: Bootstrap) -> dict[str, Difference]:
    change = {name: now[name] - before[name] for name in now}
    intervals = bootstrap.intervals(change)
    p_values = sign_flip_p_values(np.stack(list(change.values()), axis=1), resamples=FLIPS, seed=bootstrap.seed)
    return {
        name: Difference(
            base=float(before[name].mean()),
            other=float(now[name].mean()),
            difference=float(values.mean()),
            interval=intervals[name],
            p_value=float(p_value),
        )
        for (name, values), p_value in zip(change.items(), p_values, strict=True)
    }


def _solved(base: Scores, other: Scores) -> Solved:
    pairs = list(zip(base.problems, other.problems, strict=True))

    def ids(before: bool, now: bool) -> tuple[str, ...]:
        return tuple(theirs.id for ours, theirs in pairs if (ours.solved, theirs.solved) == (before, now))

    gained, lost = ids(False, True), ids(True, False)
    same_chances = base.samples_per_problem == other.samples_per_problem
    p_value = mcnemar_p_value(len(gained), len(lost)) if same_chances else None
    return Solved(only_other=gained, lost=lost, both=ids(True, True), neither=ids(False, False), p_value=p_value)


def _part(base: Scores, before: Values, now: Values, chosen_P: np.ndarray) -> Part | None:
    """Return both models' scores on the chosen problems; None if there are none."""
    if not chosen_P.any():
        return None
    of_base, of_other = (
        base.bootstrap.scores({name: of_all[chosen_P] for name, of_all in values.items()}) for values in (before, now)
    )
    ids = tuple(problem.id for problem, chosen in zip(base.problems, chosen_P, strict=True) if chosen)
    return Part(problems=ids, base=of_base, other=of_other)
