"""Numbers of a data file, kept as they are written: a float would make 5e-05 of 0.00005."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from megatron_rapo.runtime.safe_json import MAX_INTEGER_DIGITS

_REPR = re.compile(r"-?\d(?:\.\d+)?e-0\d")


class WrittenNumber(float):
    """A float that knows the text it was read from."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number


def decimal_text(number: float) -> str | None:
    """Return a number in positional notation with the digits it is written with, "0.00005"; "5" for 5.0.

    A float that was not read from a text has the fewest digits that tell it from all others. None for what is not
    finite, and for what would have more than MAX_INTEGER_DIGITS digits.
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
    """Return an answer that a program wrote as a float's repr, "5e-05", in positional notation; any other as it is.

    Only where the exponent has a zero in front, which no author writes: "2e-10" may be 10 less than twice Euler's e.
    """
    return decimal_text(WrittenNumber(text)) or text if _REPR.fullmatch(text) else text


def plain(value: Any) -> Any:
    """Return a value of a row as JSON's own kinds alone: for a WrittenNumber the float."""
    if isinstance(value, WrittenNumber):
        return float(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value
