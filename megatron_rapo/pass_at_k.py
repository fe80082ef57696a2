"""pass@k of problems, and how sure one can be of its mean. Pure: numbers in, numbers out.

Shape legend: P problems, K values of k.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate, from `num_samples` samples, of the chance that one of k is correct.

    1 - C(n - c, k) / C(n, k), exact before the division. Source: arXiv 2107.03374 (Codex), equation 1.
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def problems_pass_at_k(num_samples: int, num_correct: Sequence[int], k: Sequence[int]) -> np.ndarray:
    """[P, K] float64: `pass_at_k` of each problem, with `num_correct[p]` of `num_samples` samples right, at each k."""
    rows = {c: [pass_at_k(num_samples, c, each) for each in k] for c in set(num_correct)}
    return np.array([rows[c] for c in num_correct], dtype=np.float64)


def bootstrap_interval(values_PK: np.ndarray, *, level: float, resamples: int, seed: int) -> np.ndarray:
    """[K, 2] float64: lower and upper end of a confidence interval of `level` for each column's mean over problems.

    P rows are drawn with replacement, `resamples` times, and the ends are percentiles of their means; a row is drawn
    whole, so a column of differences between two models is a paired comparison. A problem's own sampling noise counts
    too: the value that is drawn with it has it. Where all problems have the same value, the width is zero, which only
    says that these problems do not tell how much others would differ. Source: Efron and Tibshirani, "An Introduction
    to the Bootstrap" (1993), section 13.3 (percentile interval).
    """
    rng, num_problems = np.random.default_rng(seed), len(values_PK)
    means_RK = np.stack(
        [values_PK[rng.integers(num_problems, size=num_problems)].mean(axis=0) for _ in range(resamples)]
    )
    tail = (1 - level) / 2
    return np.quantile(means_RK, [tail, 1 - tail], axis=0).T
