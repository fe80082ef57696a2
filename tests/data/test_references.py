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


def test_whole_numbers_need_no_parser():
    assert unparsable(["0", "007", "123456789012345678901234567890"]) == {}
