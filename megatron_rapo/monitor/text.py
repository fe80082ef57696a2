"""Text that people are shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence


def without_controls(text: str, replacement: str = "") -> str:
    """`text` with every control, format and surrogate character but newlines and tabs replaced.

    What a model wrote must neither steer a terminal, nor reorder a line, nor break UTF-8.
    """
    return "".join(
        replacement if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" else c for c in text
    )


def text_pieces(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each token; together they are that of all.

    Where several tokens make one character the last of them has it and the others are empty. What is none within
    _LONGEST_CHARACTER tokens is shown as it is decoded.
    """
    pieces: list[str] = []
    start = read = 0  # what comes before `read` is out; from `start` it is decoded again, for the text may depend on it
    for end in range(1, len(token_ids) + 1):
        before, text = decode(token_ids[start:read]), decode(token_ids[start:end])
        if text.endswith(_NO_CHARACTER) and end - read < _LONGEST_CHARACTER and end < len(token_ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        start, read = read, end
    return pieces


_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 8  # tokens: UTF-8 has at most four bytes a character, and emoji are often several characters
