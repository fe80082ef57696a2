import math
from itertools import product

import numpy as np
import pytest

from megatron_rapo.evaluation.estimators import problems_pass_at_k
from megatron_rapo.evaluation.statistics import (
    EXACT_PROBLEMS,
    bootstrap_interval,
    mcnemar_p_value,
    sign_flip_p_values,
)


def interval(values_PK, level=0.95, resamples=2000, seed=0):
    return bootstrap_interval(np.array(values_PK, dtype=float), level=level, resamples=resamples, seed=seed)


def test_problems_that_are_all_alike_leave_no_width():
    found = interval([[0.3, 1.0]] * 7)
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found, [[0.3, 0.3], [1.0, 1.0]], rtol=0, atol=1e-15)
    assert (found[:, 0] == found[:, 1]).all()


def test_one_problem_leaves_no_width():
    np.testing.assert_array_equal(interval([[0.25]]), [[0.25, 0.25]])


def test_ends_are_percentiles_over_all_resamples():
    """Three problems have 27 resamples. The 10th percentile is the second lowest mean, (0 + 0 + 0.2) / 3."""
    values = [0.0, 0.2, 1.0]
    means = sorted(sum(drawn) / 3 for drawn in product(values, repeat=3))
    assert means[2] == pytest.approx(0.2 / 3) and means[24] == pytest.approx(2.2 / 3)  # 2/27 < 0.1 < 4/27
    found = interval([[value] for value in values], level=0.8)
    np.testing.assert_allclose(found, [[0.2 / 3, 2.2 / 3]], rtol=0, atol=1e-12)


def test_the_level_decides_how_much_is_cut_off():
    """One of two problems is solved, so a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    values = [[0.0], [1.0]]
    np.testing.assert_array_equal(interval(values, level=0.95), [[0.0, 1.0]])
    np.testing.assert_array_equal(interval(values, level=0.4), [[0.5, 0.5]])


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(5).random((50, 3))
    first = interval(values, resamples=100)
    np.testing.assert_array_equal(first, interval(values, resamples=100))
    assert (first != interval(values, resamples=100, seed=1)).any()


def test_many_problems_give_the_normal_interval():
    """With many problems the bootstrap tends to the mean +- 1.96 standard errors."""
    values = np.random.default_rng(0).random((1000, 1))
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(
        interval(values), [[values.mean() - half, values.mean() + half]], rtol=0, atol=0.1 * half
    )


def test_rows_are_drawn_whole():
    """If two columns rise and fall together, their difference is certain although each of them is not."""
    base = np.random.default_rng(1).random(40)
    found = interval(np.stack([base, base + 0.25, (base + 0.25) - base], axis=1))
    widths = found[:, 1] - found[:, 0]
    assert widths[0] == pytest.approx(widths[1], abs=1e-12) and widths[0] > 0.1
    np.testing.assert_allclose(found[2], [0.25, 0.25], rtol=0, atol=1e-12)


def test_coverage():
    """Check that the interval contains the truth in about 95 % of simulated evaluations.

    Problems have a chance of being solved from Beta(1/2, 1), so pass@1 is 1/3 and pass@4 is
    1 - (1 / 1.5) (2 / 2.5) (3 / 3.5) (4 / 4.5); each is sampled 8 times, which is part of the uncertainty.
    """
    rng, num_problems, n = np.random.default_rng(0), 80, 8
    truth = np.array([1 / 3, 1 - (1 / 1.5) * (2 / 2.5) * (3 / 3.5) * (4 / 4.5)])
    inside = []
    for seed in range(300):
        correct = rng.binomial(n, rng.beta(0.5, 1.0, num_problems))
        found = interval(problems_pass_at_k(n, correct.tolist(), (1, 4)), resamples=400, seed=seed)
        inside.append((found[:, 0] <= truth) & (truth <= found[:, 1]))
    coverage = np.mean(inside, axis=0)
    assert ((coverage >= 0.91) & (coverage <= 0.98)).all(), coverage


# --- tests of a difference ---


def p_value(*differences, resamples=4000):
    return sign_flip_p_values(np.array(differences, dtype=float)[:, None], resamples=resamples, seed=0)[0]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 1, 1], 2 / 8),  # only all or none flipped is as far
        ([1, 1, -1], 1.0),
        ([3, 1, 1], 2 / 8),
        ([3, 1, -1], 6 / 8),  # +-3 +-1 +-1: 5, 3, 3, 1 and their opposites
        ([0.5, 0, 0, 0.5], 2 / 4),  # problems without a difference say nothing
        ([0, 0], 1.0),
        ([0.1, 0.2, -0.3], 1.0),  # 0 but for rounding
    ],
)
def test_sign_flips_by_hand(differences, expected):
    assert p_value(*differences) == pytest.approx(expected, abs=1e-15)


def test_drawn_flips_estimate_all_of_them():
    differences = np.random.default_rng(0).normal(0.35, 1, EXACT_PROBLEMS + 2)
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    assert 0.05 < exact < 0.5
    assert p_value(*differences) == pytest.approx(exact, abs=4 * math.sqrt(exact / 4000))
    assert p_value(*[1.0] * 40) == 1 / 4001  # never 0


def test_where_nothing_differs_p_values_are_even():
    rng = np.random.default_rng(1)
    below = [p_value(*rng.normal(0, 1, 30), resamples=200) < 0.1 for _ in range(400)]
    assert 0.06 < np.mean(below) < 0.14


def test_columns_have_their_own():
    found = sign_flip_p_values(np.array([[1.0, 1.0], [1.0, -1.0]]), resamples=10, seed=0)
    assert found.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (3, 1, 2 * 5 / 16), (2, 2, 1.0), (8, 2, 2 * (1 + 10 + 45) / 1024)],
)
def test_mcnemar_by_hand(gained, lost, expected):
    assert mcnemar_p_value(gained, lost) == pytest.approx(expected, abs=1e-15)
