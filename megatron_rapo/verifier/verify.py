"""Judge one answer in this process, without a deadline.

Our own code (quantities.py, lists.py, words.py) reads and compares numbers, lists of numbers and words: exactly, and
within a millisecond. math-verify parses everything else, and equality.py compares it.

math-verify's own time-outs are off. Version 0.9 uses SIGALRM, which works only in a main thread, and whose Python
handler cannot run during one C call (such as a power of large integers). The pool has a deadline instead and kills the
process (pool.py).
"""

from __future__ import annotations

import logging
import re
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse

from megatron_rapo.types import Outcome, Verdict
from megatron_rapo.verifier.boxed import final_answer, last_boxed
from megatron_rapo.verifier.chains import Chain, chain
from megatron_rapo.verifier.equality import exact, is_solved, same
from megatron_rapo.verifier.exact import compare_exact
from megatron_rapo.verifier.latex import bare, cleaned, with_fractions, without_dollars
from megatron_rapo.verifier.lists import (
    compare_lists,
    has_words,
    is_prose,
    read_list,
    with_commas,
    without_introduction,
)
from megatron_rapo.verifier.quantities import Quantity, compare, quantity
from megatron_rapo.verifier.words import as_words, judge_words, with_sets

MAX_ANSWER_CHARS = 1000
"""Longest answer that is parsed, in characters. References are far shorter, and long text could cost a deadline."""
MAX_PLAIN_CHARS = 60
"""Longest number that is compared without a worker, in characters."""

# Only LaTeX in the box: the plain-expression extractor would pick a number out of prose.
_EXTRACTION = [LatexExtractionConfig(boxed_match_priority=0)]

_PLAIN_NUMBER = re.compile(r"(?:[-+0-9./{} ]|\\[dtc]?frac(?![a-zA-Z]))+", re.ASCII)
_CAPITAL_I = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|\\[a-zA-Z]+|I")
_TEXT = re.compile(r"\\(?:text|mbox)(?![a-zA-Z])")
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])")
_SET_BUILDER = re.compile(
    r"\\\{\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\||:|\\vert)(.*)\\\}", re.DOTALL
)
_WORK = re.compile(r"[*/+^!|]|\\(?!infty|pi|mathrm|text|mbox|circ|%|\$|[ ,;:!])[a-zA-Z]|(?<=.)-")

# It warns that its time-outs are off (on purpose, see above) and about each answer that it cannot parse.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def judge(completion: str, answer: str) -> Verdict:
    r"""Return the verdict on the last \boxed{...} of `completion` against the reference `answer`.

    `answer` is the bare answer ("42", "\\frac{1}{2}", "\\text{(C)}") or a solution that ends with it (`final_answer`).
    Time and memory are not limited. Judge completions of a model with `VerifierPool`.
    """
    content = last_boxed(completion)
    if content is None:
        return Verdict(outcome=Outcome.NO_ANSWER, formatted=False)
    return Verdict(outcome=judge_boxed(content, answer), formatted=True)


def judge_boxed(content: str, answer: str) -> Outcome:
    """Judge the content of a box as `judge` does: CORRECT, WRONG, UNEVALUATED or UNPARSABLE."""
    plain = judge_plainly(content, answer)
    return judge_parsed(content, answer) if plain is None else plain


def judge_plainly(content: str, answer: str) -> Outcome | None:
    """Return the outcome if no parser is needed, else None. Takes microseconds mostly, and linear time.

    Equal texts are CORRECT. Two integers, decimals or fractions are compared by value; a parser would take a thousand
    times as long. An empty box is WRONG. An answer that is too long is UNPARSABLE.
    """
    given, reference = content.strip(), _reference(answer)
    if len(given) > MAX_ANSWER_CHARS:
        return Outcome.CORRECT if given == reference else Outcome.UNPARSABLE
    if not given:
        return Outcome.WRONG
    if len(reference) > MAX_ANSWER_CHARS:
        return Outcome.CORRECT if given == reference else Outcome.WRONG
    given, reference = bare(given), bare(reference)
    if given and given == reference:
        return Outcome.CORRECT
    outcome = compare_exact(given, reference)
    if outcome is not None:
        return outcome
    if max(len(given), len(reference)) <= MAX_PLAIN_CHARS and all(map(_PLAIN_NUMBER.fullmatch, (given, reference))):
        numbers = quantity(cleaned(reference)), quantity(cleaned(given))
        if numbers[0] is not None and numbers[1] is not None:
            return compare(numbers[0], numbers[1])
    return None


def judge_parsed(content: str, answer: str) -> Outcome:
    """Return the outcome with the help of a parser. A reference that cannot be parsed matches only its own text."""
    try:
        return _judge(_prepared(content.strip()), _prepared(_reference(answer)))
    except Exception:  # SymPy may raise any kind of exception, also RecursionError and MemoryError
        return Outcome.WRONG


def _judge(given: str, reference: str) -> Outcome:
    if given and given == reference:
        return Outcome.CORRECT
    ours, theirs = chain(reference), chain(given)
    outcome = judge_words(theirs.value if theirs.name and len(theirs.value) > 1 else given, reference)
    if outcome is not None:
        return outcome
    number = quantity(ours.value) if ours.is_value else None
    if number is not None:
        return _judge_number(number, ours, theirs)
    if is_prose(given):
        return Outcome.WRONG
    lists = read_list(_set_of(ours)), read_list(_set_of(theirs))
    if lists[0] is not None and lists[1] is not None:
        return compare_lists(lists[0], lists[1])
    if (lists[0] is not None and len(lists[0].parts) > 1) and quantity(theirs.value) is not None:
        return Outcome.WRONG
    return _judge_expression(ours, theirs)


def _prepared(text: str) -> str:
    return with_fractions(without_introduction(with_commas(with_sets(cleaned(without_dollars(text))))))


def reads_as_prose(answer: str) -> bool:
    """Return whether a reference mixes words and formulas, so that it matches only its own text."""
    text = _prepared(_reference(answer))
    if as_words(text) is not None or judge_words("", text) is not None or quantity(chain(text).value) is not None:
        return False
    return is_prose(text) or has_words(text)


def _reference(answer: str) -> str:
    found = final_answer(answer)
    return (answer if found is None else found).strip()


def _set_of(parts: Chain) -> str:
    r"""Return the value or set without "x =" or "x \in" before it, and without "\{x \mid ...\}" around it."""
    text = parts.value if parts.is_value else parts.text
    match = _MEMBER.match(text)
    text = text[match.end() :].strip() if match else text
    builder = _SET_BUILDER.fullmatch(text)
    return builder[1].strip() if builder else text


def _judge_number(reference: Quantity, ours: Chain, theirs: Chain) -> Outcome:
    """Judge against one number. The answer must be a number, name = number, or a chain of equal numbers."""
    if theirs.is_chain:
        return theirs.judge(reference, ours.name)
    given = quantity(theirs.value)
    if given is not None:
        return compare(reference, given)
    text = theirs.value
    if is_prose(text) or _TEXT.search(text):
        return Outcome.WRONG
    elements = read_list(text)
    if elements is not None:
        only = elements.parts[0]
        return compare(reference, only) if len(elements.parts) == 1 and isinstance(only, Quantity) else Outcome.WRONG
    parsed = _parse(text)
    if not parsed:
        return Outcome.UNPARSABLE
    if not any(same(a, b) for a in _parse(ours.value) for b in parsed):
        return Outcome.WRONG
    return Outcome.UNEVALUATED if _WORK.search(text) else Outcome.CORRECT


def _judge_expression(ours: Chain, theirs: Chain) -> Outcome:
    """Judge when the answer or the reference is an expression, equation, inequality, set or similar."""
    if ours.is_statement or (theirs.is_statement and not ours.is_chain):
        return Outcome.CORRECT if ours.same_members(theirs) else Outcome.WRONG
    reference, given = (
        (_set_of(each) for each in (ours, theirs)) if _is_one_value(ours, theirs) else (ours.text, theirs.text)
    )
    parsed = _parse(given)
    if not parsed:
        return Outcome.UNPARSABLE
    if theirs.is_chain != ours.is_chain and ours.text == reference and theirs.text == given:
        return Outcome.WRONG  # an equation does not match one of its sides
    expected = _parse(reference)
    if not any(same(a, b) for a in expected for b in parsed):
        return Outcome.WRONG
    return Outcome.CORRECT if is_solved(parsed[0]) or not is_solved(expected[0]) else Outcome.UNEVALUATED


def _is_one_value(ours: Chain, theirs: Chain) -> bool:
    """Return whether to compare values without a name (y = 2x matches 2x). If both are equations, compare all."""
    if ours.is_chain and theirs.is_chain:
        return False
    named = [each for each in (ours, theirs) if each.is_chain]
    return not named or (named[0].is_value and named[0].name not in (theirs if named[0] is ours else ours).text)


def _parse(text: str) -> list[Any]:
    """Return a list with the SymPy expression of `text` (decimals exact), or an empty list if it does not parse."""
    if not text or len(text) > MAX_ANSWER_CHARS:
        return []
    # first_match: if the box does not parse, do not try a part of it.
    found = parse(
        rf"\boxed{{{text}}}",
        _EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    if any(match.group() == "I" for match in _CAPITAL_I.finditer(text)):  # a letter, not the imaginary unit
        found = [each.xreplace({sympy.I: sympy.Symbol("I")}) for each in found]
    return [exact(each) for each in found]
