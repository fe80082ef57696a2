"""Judging one answer in this process, without a deadline: math-verify with its own time-outs off.

math-verify 0.9 guards itself with SIGALRM, whose Python handler cannot run while one C call (a power
of large integers, say) goes on, and which only works in a main thread. The deadline is therefore the
pool's, which kills the process (pool.py).
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from math_verify import LatexExtractionConfig, parse, verify

from megatron_rapo.rewards.boxed import final_answer, last_boxed
from megatron_rapo.rewards.exact import compare_exact
from megatron_rapo.types import Outcome, Verdict

MAX_ANSWER_CHARS = 1000
"""Longer answers are not parsed: references are far shorter, and rambling would cost a deadline each."""

MAX_WRAPPERS = 8
"""Boxes, styles and the like around an answer that are taken off."""

# Only LaTeX in the box: the plain-expression extractor would pick a number out of any prose there.
_EXTRACTION = [LatexExtractionConfig(boxed_match_priority=0)]

_THOUSANDS = re.compile(  # but "1, 234" is a list
    r"(?:[a-zA-Z] *= *)?-?(?:\\?\$)?-?[0-9]{1,3}(?:(?:,?(?:\\[,;:! ] *|~)+|\{,\}|,| )[0-9]{3})+"
)
_NOT_OF_A_NUMBER = re.compile(r"[^0-9-]")
_DELIMITED = re.compile(r"\$([^$]+)\$|\\[(\[]((?:(?!\\[()\[\]]).)+)\\[)\]]", re.DOTALL)
_STYLED = re.compile(r"(\\(?:text|mbox|(?:text|math)(?:bf|it|rm|sf|tt)|boldsymbol|bm)\s*)?\{(.*)\}", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mbox)\s*\{[^{}]*\}")
_FULL_STOP = re.compile(r"(?<!\\right)(?<!\.)\.\Z")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")  # but not the name of a command

# It warns that its time-outs are off (they are, see above) and at each answer that it cannot parse.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def judge(completion: str, answer: str) -> Verdict:
    r"""Verdict on the last closed \boxed{...} of `completion` against the reference `answer`.

    `answer` is the bare answer ("42", "\\frac{1}{2}", "\\text{(C)}") or a solution that ends in it (`final_answer`).
    No limit on time or memory: completions of a model go through `VerifierPool`.
    """
    content = last_boxed(completion)
    if content is None:
        return Verdict(outcome=Outcome.NO_ANSWER, formatted=False)
    return Verdict(outcome=judge_boxed(content, answer), formatted=True)


def judge_boxed(content: str, answer: str) -> Outcome:
    """As `judge`, of the box's content: CORRECT, WRONG or UNPARSABLE."""
    plain = judge_plainly(content, answer)
    return judge_parsed(content, answer) if plain is None else plain


def judge_plainly(content: str, answer: str) -> Outcome | None:
    """The outcome where no mathematics is needed for it, else None. Linear in the lengths, a few microseconds mostly.

    Equal texts are CORRECT; two numbers are compared as such (a parser takes a thousand times as long to say the same);
    what is too long is UNPARSABLE.
    """
    given, reference = content.strip(), _reference(answer)
    if len(given) > MAX_ANSWER_CHARS:
        return Outcome.CORRECT if given == reference else Outcome.UNPARSABLE
    given, reference = _bare(given), _bare(reference)
    if given and given == reference:
        return Outcome.CORRECT
    return compare_exact(given, reference)


def judge_parsed(content: str, answer: str) -> Outcome:
    """The outcome by mathematics alone; a reference that is none is never met."""
    parsed = _parse(_bare(content.strip()))
    if not parsed:
        return Outcome.UNPARSABLE
    # Not symmetric: the reference comes first, so that "x = 5" passes for "5".
    right = verify(_parsed_reference(answer), parsed, timeout_seconds=None)
    return Outcome.CORRECT if right else Outcome.WRONG


@lru_cache(maxsize=10_000)  # of the problems that a worker sees again
def _parsed_reference(answer: str) -> list:
    return _parse(_bare(_reference(answer)))


def _reference(answer: str) -> str:
    found = final_answer(answer)
    return (answer if found is None else found).strip()


def _bare(text: str) -> str:
    """The answer itself, without what may stand around all of it: boxes, braces, delimiters, a style, a full stop."""
    for _ in range(MAX_WRAPPERS):
        inner = last_boxed(text)
        if inner is None and (match := _DELIMITED.fullmatch(text)):
            inner = match[match.lastindex or 0]
        if inner is None and (match := _STYLED.fullmatch(text)) and _is_one_group(match[2]):
            words = match[1] and _WORD.search(
                _TEXT.sub("", match[2])
            )  # without \text they would be products of letters
            inner = text if words else match[2]
        if inner is None:
            inner = _FULL_STOP.sub("", text)
        if inner == text:
            break
        text = inner.strip()
    return _NOT_OF_A_NUMBER.sub("", text) if _THOUSANDS.fullmatch(text) else text


def _is_one_group(inside: str) -> bool:
    """Whether the braces in `inside` pair up, so that those around it belong to each other."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", inside):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _parse(text: str) -> list:
    """SymPy expression of `text` in a list, as `verify` takes it; an empty list where there is none."""
    if not text or len(text) > MAX_ANSWER_CHARS:
        return []
    # first_match: of a box that does not parse, no part is tried in its place.
    return parse(
        rf"\boxed{{{text}}}",
        _EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
