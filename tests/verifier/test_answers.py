import re

import pytest

from megatron_rapo.verifier import answers
from megatron_rapo.verifier.answers import MAX_READ_CHARS, extractor, is_balanced

FOUND = {
    "boxed": [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{1} and then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{5}" + "x" * 3 * MAX_READ_CHARS, "5"),
        ("x" * 3 * MAX_READ_CHARS + r"\boxed{5}", "5"),
        ("#### 42", None),
        (r"\boxed{42", None),
        (r"\boxed{4}<|im_end|>" + "x" * 3 * MAX_READ_CHARS + r"\boxed{5}", "4"),
    ],
    "after:####": [
        ("It is 9 * 2 = <<9*2=18>>18.\n#### 18", "18"),
        ("#### 1\n#### 2 \nThat is all.", "2"),
        ("##### $1,234", "$1,234"),
        ("#### 5<|im_end|>\nuser\n#### 7", "5"),
        ("#### 5\n####", ""),  # the last one decides
        (r"\boxed{42}", None),
        ("### 42", None),
    ],
    "after:The answer is": [
        ("The answer is 5.", "5."),
        ("The answer is: 5", ": 5"),  # the mark is what is written
        ("the answer is 5", None),
    ],
    "tag:answer": [
        ("<think>3?</think><answer> 5 </answer>", "5"),
        ("<answer>5</answer> or <answer>7</answer>", "7"),
        ("<answer>\n\\frac{1}{2}\n</answer>.", r"\frac{1}{2}"),
        ("<answer>5</answer> no, <answer>7", ""),  # the last one decides, and it is cut off
        ("<answer>5", None),
        ("5</answer>", None),
        ("</answer>5<answer>", None),
        ("<answer><answer>5</answer></answer>", "5"),
        ("<ANSWER>5</ANSWER>", None),
        ("<answer>5</answer><|endoftext|><answer>7</answer>", "5"),
    ],
    "last_number": [
        ("3 + 4 = 7", "7"),
        ("It is 42.", "42"),
        ("It costs $1,234.50!", "1,234.50"),
        ("from 10 to -3", "-3"),
        ("7-3", "3"),
        ("x=-5", "-5"),
        ("(\u22125)", "-5"),
        ("-$12 in the end", "-$12"),
        ("between 1, 234 and more", "234"),
        ("a half is 1/2", "1/2"),
        ("p = .25", ".25"),
        ("1234,567", "567"),  # no thousands
        (r"\boxed{\frac{3}{4}}", "4"),  # why boxes are the default
        ("none", None),
        ("", None),
        ("½ ٣", None),
        ("5<|im_end|>7", "5"),
    ],
}


@pytest.mark.parametrize(("mode", "text", "answer"), [(mode, *case) for mode, cases in FOUND.items() for case in cases])
def test_what_is_found(mode, text, answer):
    assert extractor(mode)(text) == answer


@pytest.mark.parametrize("mode", ["", "box", "boxed:x", "after", "after:", "tag", "tag:", "last_number:2"])
def test_other_forms_are_refused(mode):
    with pytest.raises(ValueError, match=rf"^answer={re.escape(repr(mode))}: no such form of an answer; use boxed"):
        extractor(mode)


@pytest.mark.parametrize(
    ("content", "balanced"),
    [
        ("5", True),
        (r"\frac{1}{2}", True),
        (r"\{1, 2", True),  # a printed brace opens nothing
        (r"\\{1}", True),
        ("7} and {5", False),  # \boxed{7} would be read
        ("5}", False),
        ("{5", False),
    ],
)
def test_braces_pair_up(content, balanced):
    assert is_balanced(content) is balanced


UNITS = [
    *("{", "}", "{}", "\\", "\\{", r"\boxed{", r"\boxed{}", r"\boxed", "boxed{", "####", "#", "<answer>", "</answer>"),
    *("<answer></answer>", "<", "1", "9,", "1 ", "1/", ".", "-", "-1", "$", " ", "\n", "<|im_end|", "½"),
]


class Counted:
    """A pattern that counts the characters that it reads."""

    def __init__(self, pattern):
        self.pattern, self.chars = pattern, 0

    def finditer(self, text):
        self.chars += len(text)
        return self.pattern.finditer(text)


@pytest.mark.parametrize("unit", UNITS)
def test_patterns_see_no_more_of_a_longer_text(unit, monkeypatch):
    """Each match costs a turn of a Python loop, and a completion may have a match per character."""
    number, brace = Counted(answers._NUMBER), Counted(answers._BRACE)
    boxes = []
    monkeypatch.setattr(answers, "_NUMBER", number)
    monkeypatch.setattr(answers, "_BRACE", brace)
    monkeypatch.setattr(answers, "last_boxed", boxes.append)
    for mode in ("boxed", "last_number", "after:####", "tag:answer"):
        extractor(mode)(unit * (200_000 // len(unit)))
    assert number.chars <= MAX_READ_CHARS and sum(map(len, boxes)) <= 2 * MAX_READ_CHARS + 5


def test_a_box_that_is_too_long_is_an_answer_and_not_read():
    assert len(extractor("boxed")(r"\boxed{" + "1" * 2 * MAX_READ_CHARS + "}")) > MAX_READ_CHARS
    assert extractor("boxed")(r"\boxed{" + "1" * 2 * MAX_READ_CHARS) is None
