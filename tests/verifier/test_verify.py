import logging

import pytest
from math_verify import verify

from megatron_rapo.types import Outcome, Verdict
from megatron_rapo.verifier import judge
from megatron_rapo.verifier.verify import MAX_ANSWER_CHARS, _parse


def outcome_of(content, answer):
    verdict = judge(rf"Thus the answer is $\boxed{{{content}}}$.", answer)
    assert verdict.formatted
    return verdict.outcome


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("42", "42"),
        ("42.0", "42"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        ("10080", r"10,\!080"),
        ("x = 5", "5"),
        ("5", "x=5"),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"),
        ("C", r"\text{(C)}"),
        (r"\text{east}", "east"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        (r"864 \text{ cm}^2", r"864 \mbox{ cm}^2"),
        (r"$x$ \text{ or } $y$", "x, y"),
        (r"\boxed{7}", "7"),
        ("7", r"First \boxed{6}, in the end $\boxed{7}$."),  # a solution as the reference
        ("073", "73"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("42.", "42"),
        (r"\left(1, 2\right).", "(1, 2)"),
        (r"1\,234", "1234"),
        ("1 234", "1234"),
        (r"11,\! 111,\! 100", "11111100"),
        ("-1,234", "-1{,}234"),
        ("x = 2,125", "2,125"),
        ("{58,500}", "58500"),
        (r"{\text{(C)}}", "C"),
        (r"\mathbf{5.4 \text{ cents}}", r"5.4 \text{ cents}"),
        (r"\$32,\!348", "32348"),
        (r"\(\$32,\!348\)", "32348"),
        (r"\[2.5\]", "5/2"),
        (r"\mathbf{2.5}", "2.5"),
        (r"\textbf{\frac{14}{3}}", r"\frac{14}{3}"),
        (r"\textbf{(113) }", "113"),
        (r"\text{p - q}", "p - q"),
        ("70000", "The house costs $80,000.\n#### 70,000"),  # GSM8K's way
        ("204", r"which is $\framebox{204}$ minutes"),
    ],
)
def test_correct(content, answer):
    assert outcome_of(content, answer) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("43", "42"),
        (r"\frac{1}{3}", "0.3"),
        ("(2, 1)", "(1, 2)"),
        (r"\text{west}", r"\text{east}"),
        ("B", r"\text{(C)}"),
        ("[0, 1)", "[0, 1]"),
        (r"\frac{1}{0}", "1"),
        ("5", "½"),  # a reference that is not mathematics is only compared as text
        ("5", ""),
        ("1, 234", "1234"),  # a list
        (r"\text{live}", r"\text{evil}"),  # words, not products of letters
        (r"\mathrm{(B)}", r"\text{(C)}"),
        (r"\mathbf{3}\mathbf{4}", "3"),
        ("{3}{4}", "3"),
        ("8", "80,000 - 10,000\n#### 70,000"),
    ],
)
def test_wrong(content, answer):
    assert outcome_of(content, answer) is Outcome.WRONG


@pytest.mark.parametrize(
    "content",
    [
        ".",
        "...",
        "$-$",
        r"x \right.",
        "?",
        "答案",
        r"\frac\{",
        "junk!! ?? $42$",
        "1+" * MAX_ANSWER_CHARS + "1",
    ],
)
def test_unparsable(content):
    assert outcome_of(content, "42") is Outcome.UNPARSABLE


def test_equal_texts_need_no_mathematics():
    assert outcome_of(" ½ ", "½") is Outcome.CORRECT
    assert outcome_of("9^{9^{9^{9}}}", "9^{9^{9^{9}}}") is Outcome.CORRECT  # would never end


@pytest.mark.parametrize("content", ["", " "])
def test_an_empty_box_is_wrong_for_an_empty_reference_too(content):
    assert outcome_of(content, "") is outcome_of(content, "42") is Outcome.WRONG


def test_no_closed_box_is_no_answer():
    for completion in ("The answer is 42.", r"The answer is \boxed{42", ""):
        assert judge(completion, "42") == Verdict(outcome=Outcome.NO_ANSWER, formatted=False)


def test_the_last_box_counts():
    assert judge(r"\boxed{42} no, \boxed{41}", "42").outcome is Outcome.WRONG
    assert judge(r"\boxed{42} no, \boxed{42} and \boxed{4", "42") == Verdict(outcome=Outcome.WRONG, formatted=True)


def test_is_quiet(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        judge(r"\boxed{\frac{}{}}", "42")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "reference"),
    [("42", "042"), ("-3", "-03"), ("0", "-0"), ("7", "-7"), ("100", "1000"), ("9" * 18, "9" * 17 + "8"), ("00", "0")],
)
def test_whole_numbers_get_the_parsers_verdict(given, reference):
    """Integers never reach the parser."""
    right = verify(_parse(reference), _parse(given), timeout_seconds=None)
    assert outcome_of(given, reference) is (Outcome.CORRECT if right else Outcome.WRONG)
