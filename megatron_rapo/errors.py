"""The one kind of error that is the input's fault: shown as a line, without a traceback."""

from __future__ import annotations

import sys
import unicodedata

MAX_LINE = 2000
"""Characters of an error's line that are shown."""


class InputError(ValueError):
    """Something that the user gave cannot work; the message names it, its value, the reason and the fix."""


def print_error(error: InputError, *, prefix: str = "") -> None:
    """Print an error on standard error. Every command ends with it, so nothing from a file steers the terminal."""
    lines = (shortened(line, MAX_LINE) for line in printable(f"{prefix}error: {error}").split("\n"))
    print("\n".join(lines), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return `text` with control, format, surrogate and separator characters escaped (`\\x1b`), but for newlines and
    tabs: it can neither steer a terminal nor reorder or hide what is shown."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else ascii(c)[1:-1]
        for c in text
    )


def shortened(text: str, most: int = 80) -> str:
    """Return `text` on one line: all of it, or its first `most` characters and how many it has."""
    text = text.replace("\n", " ")
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
