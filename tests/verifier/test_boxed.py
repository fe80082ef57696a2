import pytest

from megatron_rapo.verifier import final_answer, last_boxed
from tests.patience import cpu_s


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # a printed brace opens nothing
        (r"\boxed{a} but \boxed{b", ""),  # the last one, which is cut off
        (r"\boxed{a} but \boxed{\frac{1}{2}", ""),
        (r"\boxed{a \boxed{b}", "b"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        (r"x = \\\boxed {7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"{ stray \boxed{5} }}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed 57", "5"),  # one token, as LaTeX takes it
        (r"\boxed{a} but \boxed \pi", r"\pi"),
        (r"\boxed{a} in a \boxed command", "a"),  # a mention
        (r"\boxed{a}<|im_end|>\boxed{b}", "a"),
        (r"\boxedx{5}", None),
        (r"\boxed{5", None),
        (r"boxed{5}", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize("unit", [r"\boxed{", r"\boxed ", "\\", "{", "}{", r"\boxed{}", "boxed", r"\b", "\\{", " "])
def test_is_linear_in_whatever_is_repeated(unit):
    """With quadratic time, a megabyte would take minutes, and sixteen times as long as a quarter of it."""
    quarter, whole = (unit * (size // len(unit)) + r"\boxed{5}" for size in (2**18, 2**20))
    assert last_boxed(whole) in ("5", None)
    assert cpu_s(last_boxed, whole) < 8 * cpu_s(last_boxed, quarter) + 0.1


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("It is 9 * 2 = <<9*2=18>>18.\n#### 18", "18"),
        ("#### 1\n#### 2\nQ.E.D.", "2"),
        (r"\boxed{3} #### 4", "4"),
        (r"so \boxed{3}, and not \fbox{4}", "4"),
        (r"$\framebox{204}$ minutes", "204"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("The answer is 5.", None),
        ("####", ""),
    ],
)
def test_final_answer(solution, answer):
    assert final_answer(solution) == answer
