r"""Read and compare lists of numbers: 1, 2 or \{1, 2\} in any order, (1, 2) or [1, 2) in order, 1 \pm \sqrt{2}."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.latex import split
from megatron_rapo.verifier.quantities import Quantity, compare, quantity
from megatron_rapo.verifier.words import unwrapped

MAX_PARTS = 50
"""Longest list that is read here. Longer ones are left to math-verify."""

_COMMA = re.compile(r"[,;](?:\\[,;:! ]|\s|~)*")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_CONNECTED = re.compile(
    r"\s*,?\s*\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)(?![a-zA-Z])([^{}a-zA-Z]*)\}\s*"
    r"|(\\(?:text|mbox|textrm|mathrm)\s*\{[^{}]*\})|(?<=[^\\a-zA-Z{]),?\s*\b(?:and|or)\b\s*"
)
# Words that qualify or comment on an answer. They do not occur in units and names.
_COMMENT = re.compile(
    r"(?<![\\a-zA-Z])(?:if|is|isn'?t|are|was|were|be|not|no|wrong|incorrect|false|but|otherwise|else|when|where|unless|"
    r"except|maybe|perhaps|either|neither|nor|than|then|because|since|impossible|undefined|never|cannot|can|possibly|"
    r"about|approximately|instead|should|would|could|actually|sorry|wait|hence|thus|so|for|only|and|or)(?![a-zA-Z])",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(
    r"(?<![a-zA-Z])(?:not|n't|no|wrong|incorrect|false|never|neither|nor|if)(?![a-zA-Z])", re.IGNORECASE
)
_INTRODUCTION = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{[^{}0-9]*(?:(?<![a-zA-Z])(?:is|are|equals|be)|:)\s*\}\s*(?=[^\s.,])",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\(?:text|mbox|textrm|mathrm|operatorname)\s*\{[^{}]*\}")
_NAMED = re.compile(_TEXT.pattern + r"|\\(?:begin|end)\s*\{[^{}]*\}")
_TEXT_INSIDE = re.compile(r"\\(?:text|mbox|textrm)\s*\{[^{}]*[a-zA-Z]{2}[^{}]*\}(?:\^\{?[0-9]\}?)?\s*[^\s,;.})\]]")
_BARE_WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:sin|cos|tan|log|sqrt|infty|pi)\b)[a-zA-Z]{3,}")
_CASES = re.compile(r"\\begin\s*\{(?:d?r?cases|array)\}")


@dataclass(frozen=True)
class Listing:
    """A list of numbers, or of such lists, in the brackets `kind`: "", "{}", "()", "[]", "[)" or "(]"."""

    kind: str
    parts: tuple[Quantity | Listing, ...]

    @property
    def is_ordered(self) -> bool:
        return self.kind not in ("", "{}")


def with_commas(text: str) -> str:
    r"""Return `text` with commas in place of "and" and "or", also in \text{ or 7}."""
    return _CONNECTED.sub(lambda match: match[2] or f", {match[1] or ''}", text).strip()


def is_prose(text: str) -> bool:
    """Return whether an answer comments on its content or depends on cases, so that it is not one value or list."""
    return bool(_COMMENT.search(unwrapped(text)) or _CASES.search(text))


def has_words(text: str) -> bool:
    r"""Return whether words stand before or between formulas: a \text that is not a unit, or several bare words."""
    return bool(_TEXT_INSIDE.search(text)) or len(_BARE_WORD.findall(_NAMED.sub("", text))) > 1


def without_introduction(text: str) -> str:
    r"""Return `text` without a \text{The answer is } before it."""
    match = _INTRODUCTION.match(text)
    return text[match.end() :].strip() if match and not _TAKES_BACK.search(match.group()) else text


def read_list(text: str) -> Listing | None:
    """Return the list in `text`, or None if it is not a list or has a part that is neither a number nor a list."""
    kind, inside = _without_brackets(text.strip())
    texts = split(inside, _COMMA)
    if len(texts) > MAX_PARTS:
        return None
    texts = list(chain.from_iterable(map(_both_signs, texts)))
    if len(texts) < 2 and kind != "{}":
        return None
    parts = [_part(each) for each in texts]
    found = tuple(part for part in parts if part is not None)
    return Listing(kind, found) if len(found) == len(parts) else None


def _part(text: str) -> Quantity | Listing | None:
    number = quantity(text)
    return read_list(text) if number is None and text[:1] in ("(", "[", "\\") else number


def _without_brackets(text: str) -> tuple[str, str]:
    """Return the brackets around all of `text`, such as "()" (empty if there are none), and the text inside."""
    if text.startswith("\\{") and text.endswith("\\}"):
        inside, kind = text[2:-2], "{}"
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        inside, kind = text[1:-1], text[0] + text[-1]
    else:
        return "", text
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", inside):
        depth += 1 if bracket in "([{" else -1
        if depth < 0:
            return "", text
    return kind, inside


def _both_signs(text: str) -> Iterable[str]:
    r"""Return the two values of `text` if it has exactly one \pm or \mp, else `text` alone."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        return (text,)
    return (_PLUS_MINUS.sub("+", text), _PLUS_MINUS.sub("-", text))


def compare_lists(reference: Listing, given: Listing) -> Outcome:
    """Return WRONG if a part is wrong, else UNEVALUATED if one leaves arithmetic unfinished, else CORRECT.

    A list without brackets or in braces may have any order, unless the other list is a tuple or interval.
    """
    kinds = {reference.kind, given.kind}
    if len(reference.parts) != len(given.parts) or not (len(kinds) == 1 or kinds <= {"", "{}", "()"}):
        return Outcome.WRONG
    if reference.is_ordered or given.is_ordered:
        return _worst(map(_compare_parts, reference.parts, given.parts))
    left, outcomes = list(given.parts), []
    for part in reference.parts:
        found = next(
            ((at, each) for at, other in enumerate(left) if (each := _compare_parts(part, other)) is not Outcome.WRONG),
            None,
        )
        if found is None:
            return Outcome.WRONG
        del left[found[0]]
        outcomes.append(found[1])
    return _worst(outcomes)


def _compare_parts(reference: Quantity | Listing, given: Quantity | Listing) -> Outcome:
    if isinstance(reference, Listing) and isinstance(given, Listing):
        return compare_lists(reference, given)
    if isinstance(reference, Quantity) and isinstance(given, Quantity):
        return compare(reference, given)
    return Outcome.WRONG


def _worst(outcomes: Iterable[Outcome]) -> Outcome:
    found = set(outcomes)
    return next((each for each in (Outcome.WRONG, Outcome.UNEVALUATED) if each in found), Outcome.CORRECT)
