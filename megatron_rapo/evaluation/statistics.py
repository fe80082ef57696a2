"""Compute the uncertainty of a mean over problems and of a difference between two models. Pure.

Shape legend: P problems, K columns (values of k), R resamples.
"""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np

EXACT_PROBLEMS = 12  # up to this number all sign flips are listed
_BLOCK = 500  # sign flips in memory at a time
_ROUNDING = 1e-12


def bootstrap_interval(values_PK: np.ndarray, *, level: float, resamples: int, seed: int) -> np.ndarray:
    """Return a confidence interval of `level` for each column's mean over problems: both ends, [K, 2] float64.

    P rows are drawn with replacement, `resamples` times; the ends are percentiles of their means. A whole row is drawn,
    so a column of differences between two models is a paired comparison. The values contain sampling noise, so it
    counts too. If all problems have the same value the width is zero, although other problems might differ. Source:
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3 (percentile interval).
    """
    rng, num_problems = np.random.default_rng(seed), len(values_PK)
    means_RK = np.stack(
        [values_PK[rng.integers(num_problems, size=num_problems)].mean(axis=0) for _ in range(resamples)]
    )
    tail = (1 - level) / 2
    return np.quantile(means_RK, [tail, 1 - tail], axis=0).T


def sign_flip_p_values(difference_PK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Return the two-sided p-value of each column's mean, [K] float64. Null hypothesis: the models do not differ.

    Under it a problem's difference has either sign with the same chance. The p-value is the share of sign flips whose
    mean is at least as far from 0 as the observed one. If at most EXACT_PROBLEMS problems differ, all flips are listed.
    Otherwise `resamples` are drawn, and the observed one counts as one more. Source: paired permutation test (Fisher
    1935; Phipson and Smyth 2010 for the one more).
    """
    difference_PK = difference_PK[np.any(difference_PK != 0, axis=1)]
    found_K = np.abs(difference_PK.sum(axis=0)) - _ROUNDING
    if len(difference_PK) <= EXACT_PROBLEMS:
        flips_RP = np.array(list(product((-1, 1), repeat=len(difference_PK))), dtype=np.float64)
        return np.asarray((np.abs(flips_RP @ difference_PK) >= found_K).mean(axis=0))
    rng, as_far_K = np.random.default_rng(seed), np.zeros(difference_PK.shape[1])
    for start in range(0, resamples, _BLOCK):
        flips_RP = rng.choice([-1.0, 1.0], size=(min(_BLOCK, resamples - start), len(difference_PK)))
        as_far_K += (np.abs(flips_RP @ difference_PK) >= found_K).sum(axis=0)
    return np.asarray((as_far_K + 1) / (resamples + 1))


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value for problems that only one model solves: `gained` by one, `lost` by the other.

    If the models are equally good, each such problem belongs to either with a chance of 1/2 (a sign test). Source:
    McNemar 1947, in its exact (binomial) form.
    """
    total = gained + lost
    tail = sum(comb(total, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total)
