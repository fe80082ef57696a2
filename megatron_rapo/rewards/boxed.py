r"""Finding an answer in a text: the content of its last closed \boxed{...}, or where a written-out solution ends."""

from __future__ import annotations

import re

# A model may write one backslash too many; \{ and \} are braces to print, \\ is a line break. The lookbehind keeps a
# long run of backslashes from being tried again from each of them.
_TOKEN = re.compile(r"(?<!\\)\\+boxed\s*\{|\\\\|\\[{}]|[{}]")
_TOKEN_OF_SOLUTION = re.compile(r"(?<!\\)\\+(?:boxed|fbox|framebox)\s*\{|\\\\|\\[{}]|[{}]")
END_OF_TURN = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text|end▁of▁sentence)\|>")
"""Special tokens that end a turn, as text. What stands behind one is not part of the completion."""
_MARK = "####"  # GSM8K's solutions end in "#### 42"


def last_boxed(text: str) -> str | None:
    r"""Content of the \boxed{...} that closes last, or None where none is closed.

    Braces inside may be nested; of boxes in boxes, the outermost closed one counts. Linear in the
    length of `text`: a completion that repeats an unclosed box thousands of times costs no more.
    """
    return _last_group(text, _TOKEN)


def final_answer(solution: str) -> str | None:
    r"""What a solution written by people arrives at, or None where that is not marked.

    The rest of the line after the last ####, else the content of the last closed \boxed, \fbox or \framebox.
    """
    _, mark, rest = solution.rpartition(_MARK)
    return rest.strip().partition("\n")[0] if mark else _last_group(solution, _TOKEN_OF_SOLUTION)


def _last_group(text: str, tokens: re.Pattern[str]) -> str | None:
    """Content of the group that closes last of those which a token longer than two characters opens."""
    found: tuple[int, int] | None = None
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    for token in tokens.finditer(text):
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
