r"""Find an answer in a text: the content of its last \boxed{...}, or where a written-out solution ends."""

from __future__ import annotations

import re

END_OF_TURN = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text|end▁of▁sentence)\|>")
"""Special tokens that end a turn, as text. What stands behind one is not part of the completion."""

# A model may write one backslash too many; \{ and \} are braces to print, \\ is a line break. The lookbehind keeps a
# long run of backslashes from being tried again from each of them. Without a brace LaTeX boxes the next token: a digit,
# a letter by itself or a command. Any other \boxed is a mention of the command and boxes nothing.
_TOKEN = re.compile(
    r"(?<!\\)\\+boxed(?![a-zA-Z])\s*(?:\{|(?P<single>[0-9]|(?<=\s)[a-zA-Z](?![a-zA-Z])|\\[a-zA-Z]+))|\\\\|\\[{}]|[{}]"
)
_TOKEN_OF_SOLUTION = re.compile(r"(?<!\\)\\+(?:boxed|fbox|framebox)\s*\{|\\\\|\\[{}]|[{}]")
_MARK = "####"  # GSM8K's solutions end in "#### 42"


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed of the turn, or None where the turn has no whole box.

    The last \boxed decides: it withdraws those before it. Where it is cut off, the content is empty, which is no answer
    that could be right. Braces inside may be nested; of boxes in boxes, the outermost closed one counts. Linear in the
    length of `text`: a completion that repeats an unclosed box thousands of times costs no more.
    """
    end = END_OF_TURN.search(text)
    text = text[: end.start()] if end else text
    found: tuple[int, int] | None = None
    last_start = -1  # where the content of the last box starts
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        if token["single"]:
            last_start = token.start("single")
            found = token.span("single")
        elif symbol[-1] == "{" and len(symbol) > 2:
            last_start = token.end()
            open_braces.append(last_start)
        elif symbol == "{":
            open_braces.append(None)
        elif symbol == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                found = start, token.start()
    if found is None:
        return None
    return text[slice(*found)] if found[0] <= last_start <= found[1] else ""


def final_answer(solution: str) -> str | None:
    r"""Return what a solution written by people arrives at, or None where that is not marked.

    This is the rest of the line after the last ####, else the content of the last closed \boxed, \fbox or \framebox.
    """
    _, mark, rest = solution.rpartition(_MARK)
    return rest.strip().partition("\n")[0] if mark else _last_group(solution, _TOKEN_OF_SOLUTION)


def _last_group(text: str, tokens: re.Pattern[str]) -> str | None:
    """Return the content of the group that closes last of those which a token longer than two characters opens."""
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
