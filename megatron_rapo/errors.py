"""The error class for faults in the user's input. It is shown as one line, without a traceback."""

from __future__ import annotations

import sys
import unicodedata

MAX_LINE = 2000
"""Longest line of an error message that is shown in full, characters."""


class InputError(ValueError):
    """An input of the user cannot be used. The message gives its name, its value, the reason and the fix."""


def print_error(error: InputError, *, prefix: str = "") -> None:
    """Print an error to stderr. All commands report errors with it, so no text from a file can control the terminal."""
    lines = (shortened(line, MAX_LINE) for line in printable(f"{prefix}error: {error}").split("\n"))
    print("\n".join(lines), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return `text` with control, format, surrogate and separator characters escaped (`\\x1b`).

    Newlines and tabs stay. The result can neither control a terminal nor reorder or hide text.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else ascii(c)[1:-1]
        for c in text
    )


def shortened(text: str, most: int = 80) -> str:
    """Return `text` on one line: in full, or its first `most` characters and its length."""
    text = text.replace("\n", " ")
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
