"""pass@k and maj@k of problems. Pure: numbers in, numbers out.

Shape legend: P problems, K values of k, N samples of a problem, R random subsets of them, A its different answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

SUBSETS = 1000
"""Random subsets of the samples that maj@k is the mean over: a standard error of 0.016 at most for one problem, less by
the square root of their number for the mean over problems. At k = N there is one subset, and no error."""
_BLOCK = 100  # subsets at a time: with 1,000 samples they fit in a cache, and all together would not


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate, from `num_samples` samples, of the chance that one of k is correct.

    1 - C(n - c, k) / C(n, k), exact before the division. Source: arXiv 2107.03374 (Codex), equation 1.
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def problems_pass_at_k(num_samples: int, num_correct: Sequence[int], k: Sequence[int]) -> np.ndarray:
    """[P, K] float64: `pass_at_k` of each problem, with `num_correct[p]` of `num_samples` samples right, at each k."""
    columns = [_pass_by_correct(num_samples, each, max(num_correct, default=0)) for each in k]
    return np.array([[column[c] for column in columns] for c in num_correct]).reshape(len(num_correct), len(k))


def _pass_by_correct(num_samples: int, k: int, most: int) -> list[float]:
    """Return `pass_at_k` for 0, 1, ..., `most` right samples: each binomial from the one before, not from factors."""
    all_of_them = without = comb(num_samples, k)
    chances = [0.0]
    for left in range(num_samples, num_samples - most, -1):
        without = without * (left - k) // left  # C(left - 1, k) of C(left, k)
        chances.append(1.0 - without / all_of_them)
    return chances


def majority_at_k(
    num_samples: int, votes: Sequence[tuple[int, bool]], k: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """[K] float64: the chance that the most frequent answer of k samples is right, for one problem.

    `votes` has each different answer: how many of the samples gave it, and whether it is right; the others gave none,
    and a subset of such samples alone is not right. Of answers that tie, each is taken with the same chance, and the
    expectation over that is what counts: no order of answers or samples matters, and nothing is left to chance but the
    `SUBSETS` subsets, drawn without replacement, which are an unbiased estimate of the mean over all.
    """
    counts = [count for count, _ in votes]
    right_A = np.array([right for _, right in votes], dtype=bool)
    if right_A.all() or not right_A.any():  # then a vote is right where there is one, or nowhere
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
    """[K] float64: sum over R orders of the samples of the share of right ones among the first k's most frequent."""
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
    """[P, K] float64: `majority_at_k` of each problem, whose subsets depend on `seed` and on its place."""
    rows = [majority_at_k(num_samples, each, k, np.random.default_rng([seed, p])) for p, each in enumerate(votes)]
    return np.array(rows, dtype=np.float64).reshape(len(votes), len(k))
