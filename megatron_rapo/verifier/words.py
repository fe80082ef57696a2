r"""Answers that are read as text: a choice, words, a time of day, digits in a base, nothing at all."""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron_rapo.types import Outcome

_TEXT = re.compile(r"\\(?:text|mbox|textrm|textbf|textit|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:]*")
_WORDS = re.compile(r"[A-Za-z]+(?:(?:['’-]| +)[A-Za-z]+)*[.!]?")
_ARTICLE = re.compile(r"(?:an?|the) ")
_ROMAN = re.compile(r"[IVXLCDM]{2,}")
_LEAST_LETTERS = 4  # of a word; up to three letters are a product of variables

_TIME = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)
_BASED = re.compile(
    r"\(?([0-9A-Za-z][0-9A-Za-z ]*(?:\.[0-9A-Za-z]+)?)\)?"  # digits
    r"(?:_\s*\{?|\s*\(?\s*base[ -]?)\s*(?:base\s*)?([a-z]+|[0-9]+)\s*[})]*(?: (?:units?|degrees))?"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}

_SETS = {  # by their names in words
    r"\emptyset": re.compile(
        r"(?:the )?(?:empty|null) set|(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?",
        re.IGNORECASE,
    ),
    r"\mathbb{R}": re.compile(r"(?:the set of )?(?:all )?real(?:s| numbers)", re.IGNORECASE),
}


def unwrapped(text: str) -> str:
    r"""Return `text` with the content of its \text{...} in their place, and single blanks."""
    return re.sub(r"\s+", " ", re.sub(r"\\[ ,;:!]|~", " ", _TEXT.sub(r" \1 ", text))).strip()


def judge_words(given: str, reference: str) -> Outcome | None:
    """Return the outcome where the reference is of one of these kinds, else None; both are cleaned."""
    plain_given, plain = unwrapped(given), unwrapped(reference)
    for kind in (_time, _based) if _is_variable(plain) else (_choice, _time, _based):
        expected = kind(plain)
        if expected is not None:
            return Outcome.CORRECT if kind(plain_given) == expected else _otherwise(kind, plain_given, plain)
    if _based(plain_given) is not None and re.fullmatch(r"[0-9]+", plain):
        return Outcome.CORRECT if _based(plain_given) == (plain.lstrip("0"), 10) else Outcome.WRONG
    words = as_words(reference)
    if words is not None and (theirs := as_words(given, least_letters=1)) is not None:
        return Outcome.CORRECT if theirs == words else Outcome.WRONG
    return None


def _otherwise(kind: Callable[[str], object], given: str, reference: str) -> Outcome | None:
    """Return None if a letter without brackets may be a variable (the mathematical check decides), else WRONG."""
    may_be_variable = kind is _choice and _choice(given) is None and len(reference) == 1
    return None if may_be_variable else Outcome.WRONG


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(text)
    return match[1].upper() if match else None


def _is_variable(reference: str) -> bool:
    """Return whether a reference of one letter is no choice: a small letter by itself."""
    return len(reference) == 1 and reference.islower()


def _time(text: str) -> tuple[int, str] | None:
    """Return minutes and "a" or "p" of a time of day that says which half it is; 18:30 says so, too."""
    match = _TIME.fullmatch(text)
    if match is None or not (match[3] or (match[2] and int(match[1]) > 12)):
        return None
    hour, minute, half = int(match[1]), int(match[2] or 0), (match[3] or "p").lower()
    if hour > (12 if match[3] else 23) or minute > 59:
        return None
    return hour % 12 * 60 + minute, half


def _based(text: str) -> tuple[str, int] | None:
    """Return digits and base."""
    match = _BASED.fullmatch(text)
    if match is None or not match[1][0].isdigit():
        return None
    base = match[2]
    if base.isalpha():
        base = str(_BASES.get(base, ""))
    return (match[1].replace(" ", "").upper().lstrip("0"), int(base)) if base else None


def as_words(text: str, least_letters: int = _LEAST_LETTERS) -> str | None:
    r"""Return a text of words alone, in small letters and without an article, else None.

    Letters outside of \text are words from `least_letters` on, and Roman numbers always are.
    """
    plain = unwrapped(text)
    if _WORDS.fullmatch(plain) is None or len(plain) < 2:
        return None
    in_text = bool(_TEXT.fullmatch(text.strip()))
    longest = max(map(len, plain.split()))
    if not in_text and longest < least_letters and not _ROMAN.fullmatch(plain):
        return None
    return _ARTICLE.sub("", plain.rstrip(".!").lower(), count=1) if not _ROMAN.fullmatch(plain) else plain


def with_sets(text: str) -> str:
    """Return `text`, or the sign of a set where it names one in words: the empty one, the real numbers."""
    plain = unwrapped(text).rstrip(".")
    return next((sign for sign, name in _SETS.items() if name.fullmatch(plain)), text)
