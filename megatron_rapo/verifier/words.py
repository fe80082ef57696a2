r"""Judge answers that are text: a multiple choice, words, a time of day, digits in a base, the name of a set."""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron_rapo.types import Outcome

_TEXT = re.compile(r"\\(?:text|mbox|textrm|textbf|textit|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:]*")
_WORDS = re.compile(r"[A-Za-z]+(?:(?:['’-]| +)[A-Za-z]+)*[.!]?")
_ARTICLE = re.compile(r"(?:an?|the) ")
_ROMAN = re.compile(r"[IVXLCDM]{2,}")
_LEAST_LETTERS = 4  # of a word; fewer letters are a product of variables

_TIME = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)
_IN_BASE = re.compile(
    r"\(?([0-9A-Za-z][0-9A-Za-z ]*(?:\.[0-9A-Za-z]+)?)\)?"  # digits
    r"(?:_\s*\{?|\s*\(?\s*base[ -]?)\s*(?:base\s*)?([a-z]+|[0-9]+)\s*[})]*(?: (?:units?|degrees))?"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}

_SETS = {  # LaTeX of a set, and its names in words
    r"\emptyset": re.compile(
        r"(?:the )?(?:empty|null) set|(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?",
        re.IGNORECASE,
    ),
    r"\mathbb{R}": re.compile(r"(?:the set of )?(?:all )?real(?:s| numbers)", re.IGNORECASE),
}


def unwrapped(text: str) -> str:
    r"""Return `text` with each \text{...} replaced by its content, and with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\\[ ,;:!]|~", " ", _TEXT.sub(r" \1 ", text))).strip()


def judge_words(given: str, reference: str) -> Outcome | None:
    """Return the outcome if the reference is a choice, time, number in a base or words, else None.

    Both texts must be cleaned (`latex.cleaned`).
    """
    plain_given, plain = unwrapped(given), unwrapped(reference)
    is_variable = len(plain) == 1 and plain.islower()  # then it is no choice
    for read in (_time, _in_base) if is_variable else (_choice, _time, _in_base):
        expected = read(plain)
        if expected is not None:
            return Outcome.CORRECT if read(plain_given) == expected else _mismatch(read, plain_given, plain)
    if _in_base(plain_given) is not None and re.fullmatch(r"[0-9]+", plain):
        return Outcome.CORRECT if _in_base(plain_given) == (plain.lstrip("0"), 10) else Outcome.WRONG
    words = as_words(reference)
    if words is not None and (theirs := as_words(given, least_letters=1)) is not None:
        return Outcome.CORRECT if theirs == words else Outcome.WRONG
    return None


def _mismatch(read: Callable[[str], object], given: str, reference: str) -> Outcome | None:
    """Return None if the reference, one letter without brackets, may be a variable for the parser, else WRONG."""
    may_be_variable = read is _choice and _choice(given) is None and len(reference) == 1
    return None if may_be_variable else Outcome.WRONG


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(text)
    return match[1].upper() if match else None


def _time(text: str) -> tuple[int, str] | None:
    """Return (minutes, "a" or "p") of a time of day, or None if am or pm is not clear. 18:30 is clear."""
    match = _TIME.fullmatch(text)
    if match is None or not (match[3] or (match[2] and int(match[1]) > 12)):
        return None
    hour, minute, half = int(match[1]), int(match[2] or 0), (match[3] or "p").lower()
    if hour > (12 if match[3] else 23) or minute > 59:
        return None
    return hour % 12 * 60 + minute, half


def _in_base(text: str) -> tuple[str, int] | None:
    """Return the digits and the base of a number such as 1011_2, or None."""
    match = _IN_BASE.fullmatch(text)
    if match is None or not match[1][0].isdigit():
        return None
    base = match[2]
    if base.isalpha():
        base = str(_BASES.get(base, ""))
    return (match[1].replace(" ", "").upper().lstrip("0"), int(base)) if base else None


def as_words(text: str, least_letters: int = _LEAST_LETTERS) -> str | None:
    r"""Return a text that is only words, in lower case and without an article, else None.

    Outside \text, the longest word needs `least_letters` letters, or the text must be a Roman numeral.
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
    """Return the LaTeX of the set that `text` names in words (the empty set, the real numbers), else `text`."""
    plain = unwrapped(text).rstrip(".")
    return next((latex for latex, name in _SETS.items() if name.fullmatch(plain)), text)
