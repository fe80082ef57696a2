"""Types of command-line options, for argparse: a value that cannot work ends with one line that says what can."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from megatron_rapo.errors import printable, shortened

_DIGITS = re.compile(r"[0-9]{1,18}")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a type for whole numbers from `least` to `most`, written in decimal digits."""

    def parse(text: str) -> int:
        if not _DIGITS.fullmatch(text.strip()) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{said(text)}: not a whole number from {least:,} to {most:,}")
        return int(text)

    return parse


def number(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """Return a type for finite numbers from `least` (with `above`: from above it) to `most`."""
    limits = f"above {least:,g} and up to {most:,g}" if above else f"from {least:,g} to {most:,g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value <= most:  # false of NaN
            raise argparse.ArgumentTypeError(f"{said(text)}: not a number {limits}")
        return value

    return parse


def said(text: str) -> str:
    """Return an option's value as messages show it."""
    return shortened(printable(repr(text)))
