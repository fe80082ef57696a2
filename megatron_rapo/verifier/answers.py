r"""Find the answer of a completion in the form that `reward.answer` names (docs/rewards.md describes the forms).

A model can write 200,000 braces, and this runs in the training process. So each form is read in time linear in the
text, and regular expressions see at most a few windows of MAX_READ_CHARS characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from megatron_rapo.verifier.boxed import END_OF_TURN, last_boxed

MAX_READ_CHARS = 10_000
"""Longest answer or reference that is read, in characters. A longer one is unparsable, without further work."""

Extract = Callable[[str], str | None]
"""A function that returns the answer in a completion, or None if there is none in the required form."""

_BOX = "boxed"
_OPENED = re.compile(r"\\boxed\s*\{")
_DIGITS = "0123456789"
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-\u2212](?:\\?\$)?)?"  # a sign, but not the minus of "7-3"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|(?<![0-9])\.[0-9]+)",
    re.ASCII,
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def extractor(mode: str) -> Extract:
    """Return the function that finds answers in the form `mode` (a value of `reward.answer`).

    Text after the end of the turn is ignored. Raises ValueError for an unknown mode.
    """
    kind, _, name = mode.partition(":")
    if mode in ("boxed", "last_number"):
        find = _last_box if mode == "boxed" else _last_number
    elif kind in ("after", "tag") and name:
        find = partial(_after if kind == "after" else _tagged, name)
    else:
        raise ValueError(f"answer={mode!r}: no such form of an answer; use boxed, after:MARK, last_number or tag:NAME.")
    return partial(_in_turn, find)


def _in_turn(find: Extract, text: str) -> str | None:
    end = END_OF_TURN.search(text)
    return find(text[: end.start()] if end else text)


def is_balanced(content: str, tokens: re.Pattern[str] = _BRACE) -> bool:
    r"""Return whether the braces in `content` are balanced, so that it stays one group inside \boxed{}."""
    depth = 0
    for token in tokens.finditer(content):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def _last_box(text: str) -> str | None:
    """Return the content of the last box, or the rest of the text if the box is too long to read."""
    place = text.rfind(_BOX)
    if place < 0:
        return None
    end = place + len(_BOX) + MAX_READ_CHARS
    content = last_boxed(text[max(0, place - MAX_READ_CHARS) : end])
    if content is None and text.find("}", end) >= 0 and (opened := _OPENED.match(text, max(0, place - 1))):
        return text[opened.end() :]
    return content


def _after(mark: str, text: str) -> str | None:
    _, found, rest = text.rpartition(mark)
    return rest.partition("\n")[0].strip() if found else None


def _tagged(name: str, text: str) -> str | None:
    """Return the content of the tag that opens last, or "" if only an earlier tag is closed (it is withdrawn)."""
    opening, closing = f"<{name}>", f"</{name}>"
    before, opened, rest = text.rpartition(opening)
    content, closed, _ = rest.partition(closing)
    if opened and closed:
        return content.strip()
    return "" if opening in before and closing in before else None


def _last_number(text: str) -> str | None:
    end = max(text.rfind(digit) for digit in _DIGITS) + 1
    number = None
    for found in _NUMBER.finditer(text[max(0, end - MAX_READ_CHARS) : end]):
        number = found.group()
    return number and number.replace("\u2212", "-")
