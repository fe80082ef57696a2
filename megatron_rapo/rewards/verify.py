"""Judging one answer in this process, without a deadline: math-verify with its own time-outs off.

math-verify 0.9 guards itself with SIGALRM, whose Python handler cannot run while one C call (a power
of large integers, say) goes on, and which only works in a main thread. The deadline is therefore the
pool's, which kills the process (pool.py).
"""

from __future__ import annotations

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify

from megatron_rapo.rewards.boxed import last_boxed
from megatron_rapo.types import Outcome, Verdict

MAX_ANSWER_CHARS = 1000
"""Longer answers are not parsed: references are far shorter, and rambling would cost a deadline each."""

# Only LaTeX in the box: the plain-expression extractor would pick a number out of any prose there.
_EXTRACTION = [LatexExtractionConfig(boxed_match_priority=0)]

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)

# It warns that its time-outs are off (they are, see above) and at each answer that it cannot parse.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def judge(completion: str, answer: str) -> Verdict:
    r"""Verdict on the last closed \boxed{...} of `completion` against the reference `answer`.

    `answer` is the bare answer ("42", "\\frac{1}{2}", "\\text{(C)}") or a text whose last \boxed{...}
    holds it. No limit on time or memory: completions of a model go through `VerifierPool`.
    """
    content = last_boxed(completion)
    if content is None:
        return Verdict(outcome=Outcome.NO_ANSWER, formatted=False)
    return Verdict(outcome=judge_boxed(content, answer), formatted=True)


def judge_boxed(content: str, answer: str) -> Outcome:
    """As `judge`, of the box's content: CORRECT, WRONG or UNPARSABLE.

    Equal texts are CORRECT before any mathematics, and two whole numbers are compared as such (a parser takes a
    thousand times as long to say the same); a reference that is not mathematics is only ever compared as text.
    """
    given, reference = _bare(content), _bare(answer)
    if given and given == reference:
        return Outcome.CORRECT
    if _INTEGER.fullmatch(given) and _INTEGER.fullmatch(reference):
        return Outcome.CORRECT if int(given) == int(reference) else Outcome.WRONG
    parsed = _parse(given)
    if not parsed:
        return Outcome.UNPARSABLE
    # Not symmetric: the reference comes first, so that "x = 5" passes for "5".
    right = verify(_parse(reference), parsed, timeout_seconds=None)
    return Outcome.CORRECT if right else Outcome.WRONG


def _bare(text: str) -> str:
    """The answer itself, without boxes and blanks around it."""
    while (inner := last_boxed(text)) is not None:
        text = inner
    return text.strip()


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
