"""Estimate pass@k and maj@k of problems. Pure: numbers in, numbers out.

Shape legend: P problems, K values of k, N samples of a problem, R random subsets of them, A its different answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

SUBSETS = 1000
"""Number of random subsets that maj@k averages over. The standard error of one problem is at most 0.016, and that of
the mean is smaller by the square root of the number of problems. At k = N there is one subset and no error."""
_BLOCK = 100  # subsets at a time: with 1,000 samples these fit in a cache, all subsets would not


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return an unbiased estimate, from `num_samples` samples, of the chance that at least one of k is correct.

    Computes 1 - C(n - c, k) / C(n, k), exact before the division. Source: arXiv 2107.03374 (Codex), equation 1.
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def problems_pass_at_k(num_samples: int, num_correct: Sequence[int], k: Sequence[int]) -> np.ndarray:
    """Return `pass_at_k` of each problem at each k, [P, K] float64. `num_correct[p]` of `num_samples` are right."""
    rows = {c: [pass_at_k(num_samples, c, each) for each in k] for c in set(num_correct)}  # each count once
    return np.array([rows[c] for c in num_correct]).reshape(len(num_correct), len(k))


def majority_at_k(
    num_samples: int, votes: Sequence[tuple[int, bool]], k: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Return the chance that the most frequent answer of k samples is right, for one problem: [K] float64.

    `votes` has each different answer: how many samples gave it, and whether it is right. The other samples gave none; a
    subset of only such samples is not right. If answers tie, each is taken with the same chance, and the result is the
    expectation over that. So the order of answers and samples does not matter. The only randomness is the choice of
    `SUBSETS` subsets, drawn without replacement. They give an unbiased estimate of the mean over all subsets.
    """
    counts = [count for count, _ in votes]
    right_A = np.array([right for _, right in votes], dtype=bool)
    if right_A.all() or not right_A.any():  # then every vote is right, or none is
        answered, some = sum(counts), float(right_A.any())
        return np.array([some * pass_at_k(num_samples, answered, each) for each in k])
    none = len(votes)
    answer_N = np.repeat(np.arange(none + 1, dtype=np.int32), [*counts, num_samples - sum(counts)])
    chance_K = np.zeros(len(k))
    for _ in range(SUBSETS // _BLOCK):
        answer_RN = rng.permuted(np.tile(answer_N, (_BLOCK, 1)), axis=1)
        chance_K += _chances_right(answer_RN, right_A, k)
    return np.where(
        np.equal(k, num_samples), _chances_right(answer_N[None], right_A, [num_samples]), chance_K / SUBSETS
    )


def _chances_right(answer_RN: np.ndarray, right_A: np.ndarray, k: Sequence[int]) -> np.ndarray:
    """Return, summed over R orders of the samples, the share of right answers among the first k's winners, [K]."""
    subsets, columns = len(answer_RN), len(right_A) + 1
    row_R1, votes = columns * np.arange(subsets)[:, None], np.zeros(subsets * columns, np.int64)
    chances, counted = {}, 0
    for each in sorted(set(k)):
        votes += np.bincount((answer_RN[:, counted:each] + row_R1).ravel(), minlength=len(votes))
        votes_RA, counted = votes.reshape(subsets, columns)[:, :-1], each
        most_R = votes_RA.max(axis=1)
        first_RA = (votes_RA == most_R[:, None]) & (most_R > 0)[:, None]
        chances[each] = float((first_RA[:, right_A].sum(axis=1) / np.maximum(first_RA.sum(axis=1), 1)).sum())
    return np.array([chances[each] for each in k])


def problems_majority_at_k(
    num_samples: int, votes: Sequence[Sequence[tuple[int, bool]]], k: Sequence[int], *, seed: int
) -> np.ndarray:
    """Return `majority_at_k` of each problem, [P, K] float64. Its subsets depend on `seed` and the problem's index."""
    rows = [majority_at_k(num_samples, each, k, np.random.default_rng([seed, p])) for p, each in enumerate(votes)]
    return np.array(rows, dtype=np.float64).reshape(len(votes), len(k))
