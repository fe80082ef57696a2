import pytest

from megatron_rapo.evaluation.answers import count_votes, normalised
from tests.patience import cpu_s

SAME = [
    (r"\frac{1}{2}", r"\dfrac{1}{2}", r"\frac12", "1/2", "0.5", ".5", "0.50", r"\frac{2}{4}", r"$\frac{1}{2}$"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", "-0.5", "-1/2"),
    ("7", "007", "+7", "7.", "7.0", r" 7 \text{ cm}", r"\text{7}", "$7$"),
    ("1234", "1,234", "1{,}234", r"1\,234", "1 234"),
    (r"\text{(C)}", "(C)", r"\mathrm{(C)}"),
    (r"\left(1, 2\right)", "(1,2)", "( 1 , 2 )"),
]


@pytest.mark.parametrize("texts", SAME, ids=lambda texts: texts[0])
def test_written_differently(texts):
    assert len({normalised(text) for text in texts}) == 1, {text: normalised(text) for text in texts}


def test_different_answers_stay_apart():
    groups = [normalised(texts[0]) for texts in SAME]
    others = ["1, 234", "x+1", "1+x", "x=5", "-7", "70", r"\frac{1}{0}", "(2,1)", "", "(B)"]
    assert len({*groups, *map(normalised, others)}) == len(groups) + len(others)


@pytest.mark.parametrize(
    "text", ["{" * 999, "a^" * 499, r"\frac" * 190, "1" * 999, " " * 998 + "x", "mph " * 240, "1," * 499, "9" * 30000]
)
def test_no_answer_takes_long(text):
    """Each took at most 15 times as long as a fraction when this was written."""
    assert cpu_s(normalised, text) < 1000 * cpu_s(normalised, r"\frac{1}{2}")


def test_what_the_verifier_does_not_read_is_its_own_text():
    assert normalised(" 7" * 600) == " 7" * 600


def test_votes_by_hand():
    answers = ["3", "0.5", None, "1/2", "3.0", "4", r"\frac12"]
    right = [False, True, False, False, False, False, True]  # 1/2: a late verdict
    assert count_votes(answers, right) == [("1/2", 3, True), ("3", 2, False), ("4", 1, False)]
    assert count_votes(["4", "3"], [False, True]) == [("4", 1, False), ("3", 1, True)]  # the earliest first
    assert count_votes([None, None], [False, False]) == []
