from megatron_rapo.data.references import unparsable
from megatron_rapo.types import Outcome


def test_what_the_verifier_cannot_parse_is_named_once():
    fine = [
        "42",
        "-7",
        "2,125",
        "\\frac{1}{2}",
        "(3, \\frac{\\pi}{2})",
        "\\text{(C)}",
        "x \\in [-2,7]",
        "$1$, $2$",
        "0",
    ]
    assert unparsable([*fine, "\\frac{1}{", "???", "}", "???", "1" * 2000 + "x"]) == {
        "\\frac{1}{": Outcome.NO_ANSWER,  # with its brace open, the box does not close
        "???": Outcome.UNPARSABLE,
        "}": Outcome.UNPARSABLE,
        "1" * 2000 + "x": Outcome.UNPARSABLE,
    }


def test_prose_is_named_and_what_has_only_units_and_names_is_not():
    prose = [
        "$x$-intercept: $(2,0)$; $y$-intercept $(0,3)$",
        "about $3.5$ hours",
        "The width is $5$ ft and the length is $7$ ft",
        "Yes, since $f(-x)=f(x)$",
        "all real numbers except $3$",
        "increasing on $(0,3)$",
    ]
    fine = [
        "$x=3$ and $y=5$",
        r"$\$5,000$",
        "18 square feet",
        "no solution",
        "The domain is $(-\\infty,3)$",
        "$20$ mph",
    ]
    assert unparsable([*prose, *fine]) == dict.fromkeys(prose, Outcome.UNPARSABLE)


def test_whole_numbers_need_no_parser():
    assert unparsable(["0", "007", "123456789012345678901234567890"]) == {}
