r"""Finding the answer in a completion: the content of its last closed \boxed{...}."""

from __future__ import annotations

import re

# A model may write one backslash too many; \{ and \} are braces to print, \\ is a line break.
_TOKEN = re.compile(r"\\+boxed\s*\{|\\\\|\\[{}]|[{}]")


def last_boxed(text: str) -> str | None:
    r"""Content of the \boxed{...} that closes last, or None where none is closed.

    Braces inside may be nested; of boxes in boxes, the outermost closed one counts. Linear in the
    length of `text`: a completion that repeats an unclosed box thousands of times costs no more.
    """
    found: tuple[int, int] | None = None
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        if len(symbol) > 2:
            open_braces.append(token.end())
        elif symbol == "{":
            open_braces.append(None)
        elif symbol == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                found = start, token.start()
    return text[slice(*found)] if found else None
