import random
from fractions import Fraction

import pytest

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.exact import compare_exact
from megatron_rapo.verifier.verify import judge_parsed


@pytest.mark.parametrize(
    ("content", "answer", "outcome"),
    [
        ("42", "042", Outcome.CORRECT),
        ("-3", "3", Outcome.WRONG),
        ("-0", "0", Outcome.CORRECT),
        (r"\frac{10}{4}", "2.5", Outcome.CORRECT),
        (r"\dfrac{-1}{2}", "-0.5", Outcome.CORRECT),
        (r"-\tfrac{ 1 }{ 2 }", "-1/2", Outcome.CORRECT),
        ("1/3", r"\frac{1}{3}", Outcome.CORRECT),
        ("0.5", "0.25", Outcome.WRONG),
        (r"\frac{1}{3}", "0.3", Outcome.WRONG),
        ("1" + "0" * 48 + "1", "1" + "0" * 48 + "2", Outcome.WRONG),
        (f"1/{2**98}", f"1/{2**99}", Outcome.WRONG),
        # left to the verifier
        ("84/2", "42", None),
        (r"\frac{84}{2}", "42", None),
        ("10/4", "2.5", None),
        ("789*6", "4734", None),
        ("0.333333", "1/3", None),
        ("0.0000001", "0.0000002", None),
        ("1/0", "1", None),
        (r"\frac{1}{0}", "1", None),
        ("50%", "0.5", None),
        (r"11\frac{5}{9}", "104/9", None),
        ("1" * 51, "1", None),
        ("٤٢", "42", None),
        ("x", "42", None),
        ("42", "x", None),
        ("", "", None),
    ],
)
def test_by_hand(content, answer, outcome):
    assert compare_exact(content, answer) is outcome


DENOMINATORS = (1, 2, 3, 4, 7, 8, 9, 10, 25, 1000)
DIFFERENCES = tuple(Fraction(1, over) for over in (1, 7, 1000, 10**4, 10**5, 10**6))


def written(value, rng):
    """Return a number in one of the forms that people write."""
    n, d, m = value.numerator, value.denominator, rng.randint(1, 5)
    sign = "-" if value < 0 else ""
    forms = [rf"\frac{{{n * m}}}{{{d * m}}}", rf"{sign}\dfrac{{{abs(n) * m}}}{{{d * m}}}", f"{n}/{d}"]
    if d == 1:
        forms += [str(n), f"{n}.00", f"{sign}0{abs(n)}"]
    if not 10**6 % d:
        forms += [f"{float(value):.6f}", f"{float(value):.12f}"]
    return rng.choice(forms)


def test_it_says_what_the_verifier_says():
    """Check that the verifier agrees where `compare_exact` decides. There are 600 random pairs, half of them equal."""
    rng, judged = random.Random(0), []
    while len(judged) < 600:
        value = Fraction(rng.randint(-300, 300), rng.choice(DENOMINATORS))
        other = value if rng.random() < 0.5 else value + rng.choice(DIFFERENCES)
        pair = written(value, rng), written(other, rng)
        found = compare_exact(*pair)
        if found is not None:
            judged.append((pair, found))
    assert [(pair, found) for pair, found in judged if judge_parsed(*pair) is not found] == []
    assert min(sum(found is outcome for _, found in judged) for outcome in (Outcome.CORRECT, Outcome.WRONG)) > 150
