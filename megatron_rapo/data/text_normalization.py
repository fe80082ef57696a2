"""Normalise problem texts: as a whole to find duplicates, and word by word to find contamination."""

from __future__ import annotations

import re
import unicodedata

_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;:! ]|~")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+|[-+*/=<>^!%|]")


def normalised(text: str) -> str:
    r"""Return a text without differences that change only its look.

    These are Unicode compatibility forms, case, whitespace, dollar signs, LaTeX spacing (\left, \!) and \dfrac.
    """
    return re.sub(r"[\s$]+", "", _plain(text))


def words(text: str) -> list[str]:
    r"""Return the words, integers and operators of `text` in order. A LaTeX command is the word of its name."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return _FRACTION.sub(r"\\frac", _SPACING.sub(" ", text))
