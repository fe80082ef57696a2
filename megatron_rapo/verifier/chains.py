r"""Read equations: x = 5, m+n = 204, 789*6 = 4734, \sqrt{2} \approx 1.414, and statements such as \ln(e^5) = 5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.latex import split
from megatron_rapo.verifier.numerals import Node, fraction, read
from megatron_rapo.verifier.quantities import Quantity, compare, expression, quantity

_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)|\\(?:approx|simeq|doteq)(?![a-zA-Z])")
_COMMA = re.compile(r"[,;]")
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|doteq)")

_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|[0-9a-zA-Z])|'+|\^\s*\{?\\prime\}?|\^\{-1\}")
_CALL = re.compile(r"(?<![\\a-zA-Z])([a-zA-Z])\s*\([^()]*\)")
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|operatorname)\s*\{[^{}0-9]*\}")
_NOT_IN_NAMES = re.compile(
    r"[0-9!<>^,;*&%]|\\(?:sum|prod|int|lim|det|frac\s*\{\s*\}|begin|pm|mp|infty|in|cdots)(?![a-zA-Z])"
)
_LETTER = re.compile(r"[a-zA-Z]")
_SYMBOL = re.compile(r"(?:[a-zA-Z]|\\(?!frac|sqrt)[a-zA-Z]+)")


def is_name(text: str) -> bool:
    r"""Return whether `text` names a quantity, like x, x_1, f(3), \angle ABC or m+n. 2x = 10 is an equation."""
    plain = _WORDS.sub("x", _SUBSCRIPT.sub("", text))
    plain = _CALL.sub(r"\1", plain)
    return bool(_LETTER.search(plain)) and not _NOT_IN_NAMES.search(plain) and read(text) is None


def is_symbol(name: str) -> bool:
    """Return whether `name` is a single symbol or function value (x, f(3)), and not a sum or product."""
    plain = _CALL.sub(r"\1", _SUBSCRIPT.sub("", name)).strip()
    return bool(_SYMBOL.fullmatch(plain) or _WORDS.fullmatch(plain))


@dataclass(frozen=True)
class Chain:
    """Members of an equation chain such as a = b = c, with the relations between them; one member if no equation."""

    text: str
    members: tuple[str, ...]
    relations: tuple[str, ...]

    @property
    def is_chain(self) -> bool:
        return len(self.members) > 1

    @cached_property
    def name(self) -> str:
        """Return the first member if it names the value of the others, else an empty string."""
        return self.members[0] if self.is_chain and is_name(self.members[0]) else ""

    @property
    def value(self) -> str:
        return self.members[-1]

    @property
    def is_value(self) -> bool:
        """Return whether it states one value: by itself, or as symbol = value."""
        return not self.is_chain or is_symbol(self.name)

    @cached_property
    def is_statement(self) -> bool:
        """Return whether it is an equation between numbers only, which is true or false."""
        return self.is_chain and all(read(member) is not None for member in self.members)

    def same_members(self, other: Chain) -> bool:
        """Return whether both have the same members and relations, in the same or the reverse order."""
        ours, theirs = ([read(member) or member for member in each.members] for each in (self, other))
        return self.relations == other.relations and theirs in (ours, ours[::-1])

    def judge(self, reference: Quantity, reference_name: str) -> Outcome:
        """Return the outcome against the number `reference`. `reference_name` is its name, or empty."""
        name, members, relations = self.name, list(self.members), list(self.relations)
        if name and reference_name and is_symbol(name) and _plain(name) != _plain(reference_name):
            return Outcome.WRONG
        if name:
            kept = [at for at, member in enumerate(members) if at and not is_name(member)]
            members, relations = [members[at] for at in kept], [relations[at - 1] for at in kept[1:]]
        numbers = [quantity(member) for member in members]
        values = [number for number in numbers if number is not None]
        if not values or len(values) < len(numbers):
            return Outcome.WRONG
        if name and re.search(r"[+-]", name) and fraction(values[-1].node) == 0:
            return Outcome.WRONG  # the equation of a line or curve
        return _judge_values(reference, values, relations)


def chain(text: str) -> Chain:
    """Read a chain. A list of several equations is not a chain."""
    members = split(text, _EQUALS)
    if len(members) < 2 or "" in members or len(split(text, _COMMA)) > 1:
        return Chain(text, (text,), ())
    relations = ["~" if found.startswith("\\") else "=" for found in _EQUALS.findall(text)]
    if len(relations) != len(members) - 1:  # some are inside brackets
        relations = ["~" if _APPROXIMATELY.search(text) else "="] * (len(members) - 1)
    return Chain(text, tuple(members), tuple(relations))


def _plain(name: str) -> str:
    return re.sub(r"[\s{}]", "", name)


def _judge_values(reference: Quantity, values: Sequence[Quantity], relations: Sequence[str]) -> Outcome:
    """Return the best outcome among a chain's values, or WRONG if one of its relations is false."""
    for left, right, relation in zip(values, values[1:], relations, strict=False):
        if compare(left, right) is Outcome.WRONG and not (relation == "~" and _is_about(left.node, right.node)):
            return Outcome.WRONG
    outcomes = {compare(reference, value) for value in values}
    return next(each for each in (Outcome.CORRECT, Outcome.UNEVALUATED, Outcome.WRONG) if each in outcomes)


def _is_about(value: Node, decimal: Node) -> bool:
    """Return whether `decimal` is `value`, rounded or truncated to the places of `decimal`."""
    places = decimal.places or 0
    difference = Node("sum", (value, Node("negative", (decimal,))))
    exact = fraction(difference)
    if exact is None:
        number = expression(difference).evalf(30)
        if not number.is_Float:
            return False
        exact = Fraction(str(number))
    unit = Fraction(1, 10**places)
    return abs(exact) <= unit / 2 or (places > 1 and abs(exact) < unit)  # rounded, or truncated to at least two places
