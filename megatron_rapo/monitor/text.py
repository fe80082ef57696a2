"""Prepare text for people to read."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence


def without_controls(text: str, replacement: str = "") -> str:
    """Return `text` with control, format and surrogate characters replaced, except newlines and tabs.

    Text from a model must not control a terminal, reorder a line or break UTF-8.
    """
    return "".join(
        replacement if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" else c for c in text
    )


def text_pieces(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text of each token. Joined, they are the text of all tokens.

    If several tokens form one character, the last of them gets it and the others are empty. If _LONGEST_CHARACTER
    tokens form no character, they are decoded as they are.
    """
    pieces: list[str] = []
    start = read = 0  # tokens before `read` are done; decoding starts at `start`, because text depends on its context
    for end in range(1, len(token_ids) + 1):
        before, text = decode(token_ids[start:read]), decode(token_ids[start:end])
        if text.endswith(_NO_CHARACTER) and end - read < _LONGEST_CHARACTER and end < len(token_ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        start, read = read, end
    return pieces


_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 8  # tokens; a UTF-8 character has at most four bytes, but an emoji may be several characters
