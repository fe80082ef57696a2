import pytest

from megatron_rapo.data.contamination import ngrams, overlaps
from megatron_rapo.data.text_normalization import normalised, words

TRAINS = (
    "Two trains leave the same station at noon, one at $60$ km/h and the other at $80$ km/h. "
    "How far apart are they after $3$ hours?"
)
RELATIVELY_PRIME = (
    "can be expressed as $\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  $x$.\n", "find $ x $."),
        ("\\left( \\dfrac{1}{2}, 10{,}000 \\right)", "(\\frac{1}{2},10{,}000)"),
        ("\\displaystyle x \\! + \\, y", "x+y"),
        ("ﬁnd x − 1", "find x - 1"),
    ],
)
def test_what_only_changes_the_looks(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 + (3 - x)", "(2 + 3) - x"),
        ("x - 1", "x + 1"),
        ("[asy] a [/asy]", "[asy] b [/asy]"),
        ("5!", "5"),
        ("\\leftarrow", "arrow"),
    ],
)
def test_what_makes_another_problem(one, other):
    assert normalised(one) != normalised(other)


def test_words():
    assert words("Find $\\dfrac{x^2}{10}$ if f(x) ≠ Größe_3, 2.5!") == (
        ["find", "frac", "x", "^", "2", "10", "if", "f", "x", "grösse", "3", "2", "5", "!"]
    )


def test_ngrams_are_of_13_words_or_all_there_are():
    letters = [*"abcdefghijklmno"]
    assert ngrams(" ".join(letters[:12])) == {tuple(letters[:12])}
    assert ngrams(" ".join(letters)) == {tuple(letters[start : start + 13]) for start in (0, 1, 2)}
    assert ngrams("$?$") == set()


def test_the_same_problem_in_another_dress():
    assert len(words(TRAINS)) == 30
    dressed = TRAINS.upper().replace("$", "").replace(". ", ".\n\n")
    assert overlaps([dressed, "What is 1 + 1?"], ["What is 2 + 2?", TRAINS]) == [(0, 1, 1.0)]


def test_the_share_is_that_of_the_problem_with_fewer_ngrams():
    half = " ".join(TRAINS.split()[:17])  # 19 words
    assert len(ngrams(TRAINS)) == 18 and len(ngrams(half)) == 7
    assert overlaps([half], [TRAINS]) == overlaps([TRAINS], [half]) == [(0, 0, 1.0)]
    other = TRAINS.replace("after $3$ hours", "at dusk")  # common: the n-grams of the first 27 words
    assert len(ngrams(other)) == 17
    assert overlaps([other], [TRAINS]) == [(0, 0, pytest.approx(15 / 17))]


def test_a_turn_of_phrase_is_a_small_share():
    here = f"The probability that all three of the cards drawn from a shuffled deck are red {RELATIVELY_PRIME}"
    there = f"Let $ABC$ be a triangle with sides $13$, $14$ and $15$. Its shortest altitude {RELATIVELY_PRIME}"
    ((_, _, share),) = overlaps([here], [there])
    assert 0 < share < 0.4


def test_short_problems_are_compared_whole():
    assert overlaps(["Compute $2+3$.", "Compute $2-3$."], ["compute 2 + 3", TRAINS + " Compute $2-3$."]) == [
        (0, 0, 1.0)
    ]


def test_the_largest_share_comes_first():
    part = TRAINS.replace("after $3$ hours", "at dusk")
    assert [pair[:2] for pair in overlaps([part, TRAINS], [TRAINS, TRAINS])] == [(1, 0), (1, 1), (0, 0), (0, 1)]
