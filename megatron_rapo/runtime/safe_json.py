"""Read JSON from untrusted sources. Each fault gives one short reason instead of a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_INTEGER_DIGITS = 4000
"""Longest integer that is accepted. Python raises an error when it prints or parses one of over 4,300 digits."""


class JSONError(ValueError):
    """The text is not JSON, or is JSON that programs should refuse. The message is the reason."""


def parse_json(text: str | bytes, *, parse_float: Callable[[str], Any] = float) -> Any:
    """Parse one JSON value. `parse_float` converts numbers with a decimal point or an exponent.

    Raises JSONError for bad syntax, bytes that are not UTF-8, an integer of over MAX_INTEGER_DIGITS digits, nesting
    that exceeds Python's recursion limit, and half a surrogate pair.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, parse_int=_integer, parse_float=parse_float)
        if "\\u" in text:  # only an escape can give half a surrogate pair, which cannot be written as UTF-8
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise JSONError(f"not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise JSONError(f"not UTF-8 (byte {error.start:,})") from None
    except UnicodeEncodeError as error:
        found = f"\\u{ord(error.object[error.start]):04x}"
        raise JSONError(f"has half a surrogate pair ({found}), which is not a character") from None
    except RecursionError:
        raise JSONError("is nested too deeply") from None
    return value


def read_json(path: Path) -> Any:
    """Parse a file that has one JSON value. Raises OSError, and JSONError as `parse_json` does."""
    return parse_json(path.read_bytes())


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise JSONError(f"has an integer of {len(digits):,} digits, and {MAX_INTEGER_DIGITS:,} is the limit")
    return int(digits)
