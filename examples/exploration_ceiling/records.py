"""Keep the record of each model of the study, and compute figures from it. Numbers in, numbers out.

Shape legend: M models, S seeds, P problems, K values of k, R bootstrap resamples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from megatron_rapo.evaluation.estimators import problems_pass_at_k

BASE, BASE_AGAIN = "base", "base_again"
"""The base model, and the base model judged a second time by other samples: the differences that chance makes."""

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The k of the study; each weighs the same in `score`."""

CURVES = {"reward": "reward/mean", "entropy": "policy/entropy", "kl": "policy/kl"}
"""What is kept of a run's metrics.jsonl, by our names."""
CURVE_EVERY_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Record:
    """One model of one seed, judged."""

    seed: int
    method: str
    samples: int  # completions of each problem
    correct: dict[str, list[int]]  # kind -> right completions of each problem, in the data's order
    curves: dict[str, list[float]] = field(default_factory=dict)  # "step" and CURVES; empty for the base
    settings: dict[str, object] = field(default_factory=dict)  # of the algorithm; empty for the base
    exact: dict[str, dict] = field(default_factory=dict)  # what exact.py measured, by name and kind
    seconds: dict[str, float] = field(default_factory=dict)  # wall-clock time, by what took it

    @property
    def name(self) -> str:
        return f"seed{self.seed}-{self.method}"


def counts_by_kind(evaluation: Mapping) -> dict[str, list[int]]:
    """Count right completions by kind, from the scores of `evaluate --output`. The ids are KIND-INDEX, in order."""
    kinds: dict[str, list[int]] = {}
    for problem in evaluation["problems"]:
        kind, _, index = problem["id"].rpartition("-")
        counts = kinds.setdefault(kind, [])
        assert int(index) == len(counts), f"problem {problem['id']} at place {len(counts)} of its kind"
        counts.append(problem["correct"])
    return kinds


def thinned_curves(metrics: Iterable[Mapping[str, float]], every: int = CURVE_EVERY_STEPS) -> dict[str, list[float]]:
    """Return CURVES at every `every`-th step, as means over the steps since the last one."""
    rows = list(metrics)
    curves: dict[str, list[float]] = {"step": [], **{name: [] for name in CURVES}}
    for start in range(0, len(rows), every):
        window = rows[start : start + every]
        curves["step"].append(window[-1]["step"])
        for name, scalar in CURVES.items():
            curves[name].append(round(sum(row[scalar] for row in window) / len(window), 5))
    return curves


def write_record(folder: Path, record: Record) -> None:
    """Write the file atomically, so that an existing record is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), separators=(",", ":")) + "\n")
    os.replace(partial, path)


def is_finished(folder: Path, seed: int, method: str) -> bool:
    return (folder / f"seed{seed}-{method}.json").exists()


def read_records(folder: Path) -> list[Record]:
    """Return all finished records in `folder`, by seed and method."""
    records = [Record(**json.loads(path.read_text())) for path in folder.glob("seed*-*.json")]
    return sorted(records, key=lambda record: (record.seed, record.method))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The counts of a balanced study: the same problems and the same seeds for every model."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    samples: int
    correct_MSP: dict[str, np.ndarray]  # kind -> int [M, S, P]

    @classmethod
    def of(cls, records: Sequence[Record], methods: Sequence[str]) -> Table:
        """Build the table of the seeds that have a record of every method in `methods`.

        Raises:
            ValueError: if there is no such seed, or the records were not made with the same settings.
        """
        found = {(record.seed, record.method): record for record in records}
        seeds = sorted({seed for seed, _ in found})
        seeds = [seed for seed in seeds if all((seed, method) in found for method in methods)]
        if not seeds:
            raise ValueError(f"no seed has all of {', '.join(methods)}; let study.py finish one.")
        chosen = [[found[seed, method] for seed in seeds] for method in methods]
        samples = {record.samples for row in chosen for record in row}
        if len(samples) > 1:
            raise ValueError(f"samples per problem differ between records: {sorted(samples)}; run the study anew.")
        for method, row in zip(methods, chosen, strict=True):
            if any(record.settings != row[0].settings for record in row):
                raise ValueError(f"the settings of {method} differ between seeds; run the study anew.")
        return cls(
            methods=tuple(methods),
            seeds=tuple(seeds),
            samples=samples.pop(),
            correct_MSP={
                kind: np.array([[record.correct[kind] for record in row] for row in chosen])
                for kind in chosen[0][0].correct
            },
        )

    def counts_MSP(self, kind: str) -> np.ndarray:
        """Return the counts of one kind, or of all problems."""
        if kind == "all":
            return np.concatenate(list(self.correct_MSP.values()), axis=2)
        return self.correct_MSP[kind]

    def pass_at_MSPK(self, kind: str, k: Sequence[int]) -> np.ndarray:
        """Return the unbiased pass@k of every problem."""
        counts_MSP = self.counts_MSP(kind)
        values = problems_pass_at_k(self.samples, counts_MSP.ravel().tolist(), k)
        return values.reshape(*counts_MSP.shape, len(k))

    def solved_MSP(self, kind: str) -> np.ndarray:
        """Return whether at least one of the samples is right, bool."""
        return self.counts_MSP(kind) > 0


def expected_pass_at(logprobs: Sequence[float], k: int) -> float:
    """Return the mean over problems of 1 - (1 - p)^k, from the log-probabilities of right completions (exact.py)."""
    return float(np.mean(1 - (1 - np.exp(logprobs)) ** k))


def score(logprobs: Mapping[str, Sequence[float]]) -> float:
    """Return the score that chooses settings: the mean of the expected pass@k over KS and kinds of problems."""
    return float(np.mean([expected_pass_at(values, k) for values in logprobs.values() for k in KS]))


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def estimate(values_SP: np.ndarray, *, resamples: int = 2000, seed: int = 0, scale: float = 1.0) -> Estimate:
    """Return the mean over seeds and problems, times `scale`, with a 95% percentile bootstrap interval.

    Seeds and problems are both drawn with replacement, independently: the problems are the same for every seed, so a
    resample is a set of seeds by a set of problems. For differences between two models this is a paired comparison.
    """
    of_seeds_RS, of_problems_RP = _weights(*values_SP.shape, resamples, seed)
    means_R = ((of_seeds_RS @ values_SP) * of_problems_RP).sum(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(scale * float(values_SP.mean()), scale * float(low), scale * float(high))


@cache
def _weights(num_seeds: int, num_problems: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of each seed [R, S] and each problem [R, P] in the resamples, the same for all estimates."""
    rng = np.random.default_rng(seed)
    of_seeds_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples) / num_seeds
    of_problems_RP = rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=resamples)
    return of_seeds_RS, of_problems_RP / num_problems
