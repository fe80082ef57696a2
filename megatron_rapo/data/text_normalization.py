"""When two problems are the same text: strictly, for duplicates, and word by word, for contamination."""

from __future__ import annotations

import re
import unicodedata

_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;:! ]|~")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+|[-+*/=<>^!%|]")


def normalised(text: str) -> str:
    r"""Return a text without differences that only change its looks.

    These are Unicode compatibility forms, case, blanks, dollar signs, LaTeX spacing (\left, \!), \dfrac for \frac.
    """
    return re.sub(r"[\s$]+", "", _plain(text))


def words(text: str) -> list[str]:
    r"""Return runs of letters, integers and operators, in order. A LaTeX command counts as the word of its name."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return _FRACTION.sub(r"\\frac", _SPACING.sub(" ", text))
