r"""Compare two plainly written numbers exactly, without a parser: this is cheap and judges most answers.

Integers, decimals, a/b and \frac{a}{b} are read as rationals. Everything else is left to the verifier.
"""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_rapo.types import Outcome

# With at most 50 digits, a Fraction takes microseconds.
_WHOLE = re.compile(r"-?[0-9]{1,50}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,50}\.[0-9]{1,50}", re.ASCII)
_SLASH = re.compile(r"(-?)([0-9]{1,50})/([0-9]{1,50})", re.ASCII)
_FRAC = re.compile(r"(-?)\\[dt]?frac *\{ *(-?[0-9]{1,50}) *\} *\{ *(-?[0-9]{1,50}) *\}", re.ASCII)

_CLOSE, _CLOSE_SHARE = Fraction(1, 10**5), Fraction(1, 10**9)
"""A decimal may be a rounded value. If it is this close to the other number (absolutely or relatively), the verifier
decides, which compares decimals to six places."""


def compare_exact(content: str, answer: str) -> Outcome | None:
    """Return CORRECT or WRONG for two numbers, or None if the verifier has to decide.

    The verifier decides if one text is not a number, if a fraction is an integer or has a slash and is not reduced
    (84/2; it may count as unfinished arithmetic), and if a decimal is close to the reference but not equal.
    """
    given = _number(content)
    if given is None or _is_left_to_do(content, given):
        return None
    reference = _number(answer)
    if reference is None:
        return None
    if given == reference:
        return Outcome.CORRECT
    rounded, difference = "." in content or "." in answer, abs(given - reference)
    if rounded and (difference <= _CLOSE or difference <= _CLOSE_SHARE * abs(reference)):
        return None
    return Outcome.WRONG


def _number(text: str) -> Fraction | None:
    if _WHOLE.fullmatch(text) or _DECIMAL.fullmatch(text):
        return Fraction(text)
    found = _SLASH.fullmatch(text) or _FRAC.fullmatch(text)
    if not found or not int(found[3]):
        return None
    value = Fraction(int(found[2]), int(found[3]))
    return -value if found[1] else value


def _is_left_to_do(text: str, value: Fraction) -> bool:
    """Return whether `text`, which has this value, may count as unfinished arithmetic."""
    written = _SLASH.fullmatch(text)
    if written:
        return value.denominator == 1 or int(written[3]) != value.denominator
    return "frac" in text and value.denominator == 1
