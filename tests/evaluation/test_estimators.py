import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from megatron_rapo.evaluation.estimators import (
    SUBSETS,
    majority_at_k,
    pass_at_k,
    problems_majority_at_k,
    problems_pass_at_k,
)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
    for correct in range(n + 1):
        answers = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(combinations(answers, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (16, 4, 1, 0.25),
        (4, 2, 2, 5 / 6),  # of the 6 pairs one has no right answer
        (16, 0, 16, 0.0),
        (16, 1, 16, 1.0),
        (1024, 1, 512, 0.5),
        (100_000, 1, 50_000, 0.5),  # binomials far beyond floating point
    ],
)
def test_pass_at_k_by_hand(n, correct, k, expected):
    assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-15)


def test_problems_have_a_row_each_and_k_a_column():
    values = problems_pass_at_k(4, [2, 0, 4, 2], (1, 2, 4))
    expected = [[0.5, 5 / 6, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 5 / 6, 1.0]]
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-15)


def majority(n, votes, k):
    return majority_at_k(n, votes, k, np.random.default_rng(0))


def chance_right(n, votes, k):
    """Compute the chance from all subsets. Answers that tie are equally likely to win."""
    answers = [i for i, (count, _) in enumerate(votes) for _ in range(count)]
    answers += [None] * (n - len(answers))
    chances = []
    for subset in combinations(answers, k):
        counts = Counter(answer for answer in subset if answer is not None)
        first = [answer for answer, count in counts.items() if count == max(counts.values())]
        chances.append(sum(votes[answer][1] for answer in first) / len(first) if first else 0.0)
    return sum(chances) / len(chances)


@pytest.mark.parametrize(
    "votes",
    [
        [(3, True), (2, False)],
        [(3, False), (2, True), (2, False)],
        [(2, True), (2, False), (1, True), (1, False)],  # two right answers that are written differently
        [(1, False), (1, True)],
        [(1, False), (5, True)],
    ],
)
def test_majority_is_the_mean_over_all_subsets(votes):
    n = 8
    found = majority(n, votes, range(1, n + 1))
    for k, value in zip(range(1, n + 1), found, strict=True):
        assert value == pytest.approx(chance_right(n, votes, k), abs=4 * 0.5 / math.sqrt(SUBSETS)), k
    assert found[-1] == pytest.approx(chance_right(n, votes, n), abs=1e-15)  # the one subset of all


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([(2, True), (1, False)], 1.0),
        ([(2, False), (1, True)], 0.0),
        ([(2, False), (2, True)], 0.5),  # a tie
        ([(1, False), (1, True), (1, False)], 1 / 3),
        ([], 0.0),  # nobody answered
    ],
)
def test_majority_of_all_samples_by_hand(votes, expected):
    assert majority(4, votes, [4]) == pytest.approx([expected], abs=1e-15)


def test_without_wrong_answers_a_vote_is_right_where_there_is_one():
    assert majority(4, [(1, True), (1, True)], [1, 2, 4]) == pytest.approx([0.5, 5 / 6, 1.0], abs=1e-15)
    assert majority(4, [(3, False)], [1, 4]).tolist() == [0.0, 0.0]


def test_the_order_of_answers_does_not_matter():
    one, other = (majority(4, votes, [4])[0] for votes in ([(2, True), (2, False)], [(2, False), (2, True)]))
    assert one == other == 0.5


def test_problems_are_drawn_each_by_itself():
    votes = [[(3, True), (3, False)]] * 2
    found = problems_majority_at_k(8, votes, (2, 8), seed=0)
    np.testing.assert_array_equal(found, problems_majority_at_k(8, votes, (2, 8), seed=0))
    assert found.shape == (2, 2) and found[0, 0] != found[1, 0] and found[:, 1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("n", [1, 5, 40, 1000])
def test_pass_at_k_of_every_number_of_right_samples_is_that_of_one(n):
    """The values are equal to the last bit."""
    k = sorted({1, max(1, n // 3), max(1, n // 2), n})
    correct = list(range(0, n + 1, max(1, n // 50)))
    expected = [[pass_at_k(n, c, each) for each in k] for c in correct]
    assert problems_pass_at_k(n, correct, k).tolist() == expected


def test_the_order_of_k_does_not_matter():
    votes = [[(3, True), (4, False), (1, False)]]
    up, down = (problems_majority_at_k(10, votes, k, seed=0)[0].tolist() for k in ([2, 5, 10], [10, 5, 2]))
    assert up == down[::-1] and up[-1] == 0.0
