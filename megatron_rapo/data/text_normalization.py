"""When two problems are the same text: strictly, for duplicates, and word by word, for contamination."""

from __future__ import annotations

import re
import unicodedata

_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;:! ]|~")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+|[-+*/=<>^!%|]")


def normalised(text: str) -> str:
    r"""What is left of a text without what only changes its looks.

    Unicode's compatibility forms, case, all blanks, dollar signs, spacing in LaTeX (\left, \!), \dfrac for \frac.
    """
    return re.sub(r"[\s$]+", "", _plain(text))


def words(text: str) -> list[str]:
    r"""Runs of letters, whole numbers and operators, in order; a command of LaTeX is the word that it is called by."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return _FRACTION.sub(r"\\frac", _SPACING.sub(" ", text))
