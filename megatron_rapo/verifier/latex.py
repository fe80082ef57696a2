r"""Clean the LaTeX of an answer: remove everything that changes only its look.

All functions work on text alone. Each takes time linear in its length, or reads a bounded number of wrappers.
"""

from __future__ import annotations

import re

from megatron_rapo.verifier.answers import is_balanced
from megatron_rapo.verifier.boxed import last_boxed

MAX_WRAPPERS = 8
"""Most boxes, styles and other wrappers that are removed from around an answer."""

_THOUSANDS = re.compile(  # but "1, 234" is a list
    r"(?:[a-zA-Z] *= *)?[-+]?(?:\\?\$)?[-+]?[0-9]{1,3}(?:(?:,?(?:\\[,;:! ] *|~)+|\{,\}|,| )[0-9]{3})+(?:\.[0-9]+)?"
)
_NOT_IN_NUMBERS = re.compile(r"[^0-9.+-]")
_DELIMITED = re.compile(r"\$([^$]+)\$|\\[(\[]((?:(?!\\[()\[\]]).)+)\\[)\]]", re.DOTALL)
_STYLED = re.compile(r"(\\(?:text|mbox|(?:text|math)(?:bf|it|rm|sf|tt)|boldsymbol|bm)\s*)?\{(.*)\}", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mbox)\s*\{[^{}]*\}")
_BRACE = re.compile(r"(?<!\\)[{}]")  # unlike in answers.py, a brace after \\ is escaped too
_FULL_STOP = re.compile(r"(?<!\\right)(?<!\.)\.\Z")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")  # not the name of a command

# Patterns with their replacements, applied in one pass over the text.
_COSMETICS = (
    (r"\\(?:textcolor|colorbox)\s*(?:\[[^\]{}]*\]\s*)?\{[^{}]*\}", ""),  # keep the group after it
    (r"\\fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}", ""),
    (r"\\color\s*(?:\[[^\]{}]*\]\s*)?\{[^{}]*\}", ""),
    (
        r"\\(?:(?:display|text|script|scriptscript)style|bf|rm|it|normalsize|[lL]arge|LARGE|[hH]uge|limits)(?![a-zA-Z])",
        " ",
    ),
    (r"\\(?:mathbf|boldsymbol|bm)(?=\s*\{[^a-zA-Z{}]*\})", ""),
    (r"\\(?:underline|fbox|framebox)(?=\s*\{)", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\frac"),
    (r"\\lor(?![a-zA-Z])", ", "),
    (r"\\(?:[bB]igg?[lrm]?|left|right)(?=\s*(?:[()\[\]|/]|\\[{}|]|\\[lr](?:vert|brace|brack|angle|floor|ceil)))", ""),
    (r"\\varnothing(?![a-zA-Z])|∅", r"\emptyset "),
    (r"\\(?:leqslant|leqq)(?![a-zA-Z])|≤", r"\le "),
    (r"\\(?:geqslant|geqq)(?![a-zA-Z])|≥", r"\ge "),
    ("−", "-"),
    ("×", r"\times "),
    ("·", r"\cdot "),
    ("÷", r"\div "),
    ("π", r"\pi "),
    ("∞", r"\infty "),
    ("∪", r"\cup "),
    ("°", r"^\circ "),
    ("≠", r"\ne "),
    ("±", r"\pm "),
    ("≈", r"\approx "),
)
_COSMETIC = re.compile("|".join(f"({pattern})" for pattern, _ in _COSMETICS))

# As in Pandoc, no space may follow the opening $ or precede the closing one. So "$5 and $7" has no formula.
_FORMULA = re.compile(r"(?<!\\)\$(?=[^\s$])((?:[^$\\]|\\.)*?[^\s$\\]|(?:[^$\\]|\\.)*?\\.)\$(?![0-9])", re.DOTALL)
_WORDS_AND_FORMULA = re.compile(_FORMULA.pattern + r"|([^$\\]+)", re.DOTALL)
_ONLY_WORDS = re.compile(r"[a-zA-Z\s,.;:'()/-]*")
_MONEY = re.compile(r"(?<!\\)\$(?=\s*[-+]?\.?[0-9])(?![^$]*\$)")

_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]*)\.([0-9]*)\\(?:overline|bar)\s*(?:\{([0-9]+)\}|([0-9]))(?![0-9])"
    r"|(?<![0-9.])([0-9]*)\.([0-9]*)(?:\\dot\s*\{?([0-9])\}?)([0-9]*)(?:\\dot\s*\{?([0-9])\}?)?(?![0-9])"
    r"|(?<![0-9.])([0-9]+)\.([0-9]*?)([0-9]{1,9}?)\12\12+ *(?:\\ldots|\\dots|\\cdots|\.\.\.|…)"
)
_MAX_DIGITS = 40  # of a repeating decimal


def without_dollars(text: str) -> str:
    r"""Return `text` with $formulas$ unwrapped and words around them in \text. An unpaired $ of money becomes \$."""
    outside = _FORMULA.split(text)[::2]
    if len(outside) > 1 and any(map(str.strip, outside)) and all(map(_ONLY_WORDS.fullmatch, outside)):
        text = _WORDS_AND_FORMULA.sub(_in_text, text)
    return _MONEY.sub(r"\\$", text)


def _in_text(match: re.Match[str]) -> str:
    if match[1] is not None:
        return f" {match[1]} "
    return rf"\text{{{match[2]}}}" if re.search("[a-zA-Z]", match[2]) else match[2]


def cleaned(text: str) -> str:
    """Return `text` without colours, styles, sizes and outer wrappers, and with synonymous commands unified."""
    text = _COSMETIC.sub(lambda match: _COSMETICS[(match.lastindex or 1) - 1][1], text)
    return bare(text.strip())


def bare(text: str) -> str:
    """Return `text` without wrappers around all of it: boxes, braces, delimiters, a style, a full stop."""
    for _ in range(MAX_WRAPPERS):
        inner = last_boxed(text)
        if inner is None and (match := _DELIMITED.fullmatch(text)):
            inner = match[match.lastindex or 0]
        if inner is None and (match := _STYLED.fullmatch(text)) and is_balanced(match[2], _BRACE):
            words = match[1] and _WORD.search(_TEXT.sub("", match[2]))  # bare words would be products of letters
            inner = text if words else match[2]
        if inner is None:
            inner = _FULL_STOP.sub("", text)
        if inner == text:
            break
        text = inner.strip()
    return _NOT_IN_NUMBERS.sub("", text) if _THOUSANDS.fullmatch(text) else text


def with_fractions(text: str) -> str:
    r"""Return `text` with repeating decimals (0.\overline{3}, 0.\dot{3}, 0.333...) as fractions."""
    return _REPEATING.sub(_fraction, text) if "." in text else text


def _fraction(match: re.Match[str]) -> str:
    if match[12]:
        whole, fixed, period = match[10], match[11], match[12]
    elif match[7]:
        whole, fixed, period = match[5], match[6], match[7] + (match[8] + match[9] if match[9] else "")
        if match[8] and not match[9]:
            return match.group()
    else:
        whole, fixed, period = match[1], match[2], match[3] or match[4]
    if len(whole + fixed + period) > _MAX_DIGITS:
        return match.group()
    top = int(whole + fixed + period) - int(whole + fixed or "0")
    bottom = int("9" * len(period) + "0" * len(fixed))
    return rf"\frac{{{top}}}{{{bottom}}}" if top % bottom else str(top // bottom)


def split(text: str, separators: re.Pattern[str]) -> list[str]:
    """Split `text` at the matches of `separators` that are outside all brackets."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if depth == 0 and (match := separators.match(text, position)) and match.end() > position:
            parts.append(text[start:position].strip())
            start = position = match.end()
            continue
        if text[position] == "\\":
            position += 1 if text[position + 1 : position + 2] in "{}" else 0
            if text[position : position + 1] == "{":
                depth += 1
            elif text[position : position + 1] == "}":
                depth -= 1
        elif text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
        position += 1
    return [*parts, text[start:].strip()]
