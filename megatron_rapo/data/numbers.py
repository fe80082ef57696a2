"""Keep the numbers of a data file as they are written. A plain float would turn 0.00005 into 5e-05."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from megatron_rapo.runtime.safe_json import MAX_INTEGER_DIGITS

_REPR = re.compile(r"-?\d(?:\.\d+)?e-0\d")


class WrittenNumber(float):
    """A float that keeps the text it was read from."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number


def decimal_text(number: float) -> str | None:
    """Return a number in positional notation with its digits as written: "0.00005"; "5" for 5.0.

    A float that was not read from text gets the fewest digits that identify it. Returns None for a number that is not
    finite or would have more than MAX_INTEGER_DIGITS digits.
    """
    if isinstance(number, int):
        return str(number)
    try:
        value = Decimal(number.text if isinstance(number, WrittenNumber) else repr(number))
    except InvalidOperation:  # an exponent of many digits
        return None
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or max(value.adjusted(), -exponent) >= MAX_INTEGER_DIGITS:
        return None
    return str(int(value)) if value == value.to_integral_value() else format(value, "f")


def without_exponent(text: str) -> str:
    """Return an answer written as a float's repr ("5e-05") in positional notation, and any other answer unchanged.

    Only an exponent with a leading zero counts, because people do not write it: "2e-10" may mean 2 * e - 10.
    """
    return decimal_text(WrittenNumber(text)) or text if _REPR.fullmatch(text) else text


def plain(value: Any) -> Any:
    """Return a value of a row with plain JSON types only: each WrittenNumber becomes a float."""
    if isinstance(value, WrittenNumber):
        return float(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value
