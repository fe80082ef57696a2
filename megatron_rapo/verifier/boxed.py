r"""Find an answer in a text: the content of its last \boxed{...}, or the final answer of a written-out solution."""

from __future__ import annotations

import re

END_OF_TURN = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text|end▁of▁sentence)\|>")
"""Special tokens that end a turn, as text. Text after one is not part of the completion."""

# A model may write one backslash too many. \{ and \} are printed braces, \\ is a line break. The lookbehind keeps the
# search linear in a long run of backslashes. Without a brace LaTeX boxes the next token: a digit, a single letter or a
# command. Any other \boxed only mentions the command and boxes nothing.
_TOKEN = re.compile(
    r"(?<!\\)\\+boxed(?![a-zA-Z])\s*(?:\{|(?P<single>[0-9]|(?<=\s)[a-zA-Z](?![a-zA-Z])|\\[a-zA-Z]+))|\\\\|\\[{}]|[{}]"
)
_SOLUTION_TOKEN = re.compile(r"(?<!\\)\\+(?:boxed|fbox|framebox)\s*\{|\\\\|\\[{}]|[{}]")
_MARK = "####"  # GSM8K's solutions end in "#### 42"


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed of the turn, or None if the turn has no closed box.

    The last \boxed decides, because it withdraws earlier ones. If it is cut off, return "", which is never a right
    answer. Braces inside may be nested. If boxes are nested, the outermost closed one counts. Takes time linear in the
    length of `text`, also if it repeats an unclosed box thousands of times.
    """
    end = END_OF_TURN.search(text)
    text = text[: end.start()] if end else text
    found, last_start = _last_box(text, _TOKEN)
    if found is None:
        return None
    return text[found] if found.start <= last_start <= found.stop else ""


def final_answer(solution: str) -> str | None:
    r"""Return the final answer of a solution written by people, or None if it is not marked.

    This is the rest of the line after the last ####, else the content of the last closed \boxed, \fbox or \framebox.
    """
    _, mark, rest = solution.rpartition(_MARK)
    if mark:
        return rest.strip().partition("\n")[0]
    found, _ = _last_box(solution, _SOLUTION_TOKEN)
    return None if found is None else solution[found]


def _last_box(text: str, tokens: re.Pattern[str]) -> tuple[slice | None, int]:
    """Return where the content of the box that closes last is, and where the content of the last box starts."""
    found, last_start = None, -1
    open_braces: list[int | None] = []  # the start of a box's content; None for any other brace
    for token in tokens.finditer(text):
        symbol = token.group()
        if token.lastgroup == "single":
            last_start = token.start("single")
            found = slice(*token.span("single"))
        elif symbol[-1] == "{" and len(symbol) > 2:
            last_start = token.end()
            open_braces.append(last_start)
        elif symbol == "{":
            open_braces.append(None)
        elif symbol == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                found = slice(start, token.start())
    return found, last_start
