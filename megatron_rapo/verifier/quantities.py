r"""Compare a number with the reference number: by exact value, by unit, and by unfinished arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import sympy

from megatron_rapo.types import Outcome
from megatron_rapo.verifier.numerals import Node, fraction, read
from megatron_rapo.verifier.unfinished_arithmetic import work_left

DIGITS = 60
"""Significant digits to which irrational values are compared."""
APPROXIMATE_PLACES = 6
"""Least places and significant digits of a decimal that may stand for a value that no decimal equals."""

_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm|textrm|textbf|textit|mathbf|operatorname)\s*\{([^{}]*)\}"
    r"|(?<=[0-9}\s%])\s*([a-zA-Z]{3,}(?:[ -][a-zA-Z]+)*))"
    r"\s*(?:\^\s*\{?\s*(-?[0-9])\s*\}?)?\Z"
)
_CURRENCY = re.compile(r"\A\s*([-+]?)\s*(?:\\\$|\\text\s*\{\s*\\\$\s*\}|[$€£])\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent|per cent|pct)\s*\}|\bpercent\b)\s*\Z")
_TEMPERATURE = re.compile(r"(\\circ\s*\}?)\s*[CF]\s*\Z")
_WORDS = re.compile(r"[a-zA-Z]+")
_ALL_TEXT = re.compile(r"\\(?:text|mbox|mathrm)\s*\{(\s*[-+$0-9][^{}]*)\}")
_JOINS = re.compile(r"(?:/|\\cdot|\\times|\\,|\\ |\s|\\;|~)+\Z")
_MAX_UNITS = 4

# Words that comment on a number instead of naming a unit.
_NOT_UNITS = re.compile(
    r"(?<![a-zA-Z])(?:or|and|if|is|isn|are|aren|was|were|be|not|no|wrong|incorrect|false|but|otherwise|else|when|where|"
    r"unless|except|maybe|perhaps|either|neither|nor|than|then|because|since|impossible|undefined|never|cannot|can|"
    r"possibl[ey]|about|approximately|around|almost|nearly|mod|modulo|base|remainder|times|plus|minus|divided|over|sin|"
    r"cos|tan|log|exp|for|with|without|instead|should|would|could|actually|sorry|wait|hence|thus|so|true|iff|only)"
    r"(?![a-zA-Z])|[0-9=<>]"
)
_SAME_UNIT = {
    "millimeter": "mm millimeter millimetre",
    "centimeter": "cm centimeter centimetre",
    "meter": "m meter metre",
    "kilometer": "km kilometer kilometre",
    "inch": "in inch inche",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "cent": "cent",
    "dollar": "dollar buck",
    "second": "s sec second",
    "minute": "min minute",
    "hour": "h hr hour",
    "day": "day",
    "week": "week",
    "year": "yr year",
    "gram": "g gram",
    "kilogram": "kg kilogram",
    "ounce": "oz ounce",
    "pound": "lb pound",
    "degree": "deg degree",
    "radian": "rad radian",
}
_UNIT_OF = {word: unit for unit, words in _SAME_UNIT.items() for word in words.split()}
_POWERS = {"square": "2", "squared": "2", "sq": "2", "cubic": "3", "cubed": "3", "cu": "3"}


@dataclass(frozen=True)
class Quantity:
    """A number with its units."""

    node: Node
    units: tuple[str, ...]  # only known ones (_SAME_UNIT), with their powers
    percent: bool


def quantity(text: str) -> Quantity | None:
    r"""Read a number that may have a currency sign, units and a percent sign. Return None for any other text."""
    units: list[str] = []
    if match := _ALL_TEXT.fullmatch(text.strip()):
        text = match[1]
    text, found = _CURRENCY.subn(r"\1", text.strip())
    if found:
        units.append("dollar")
    text, percents = _PERCENT.subn("", _TEMPERATURE.sub(r"\1", text))
    for _ in range(_MAX_UNITS):
        match = _UNIT.search(text)
        if match is None or not match.start():
            break
        words = (match[1] or match[2] or "").lower()
        if _NOT_UNITS.search(words):
            return None
        units += _known(_WORDS.findall(words), match[3])
        text = _JOINS.sub("", text[: match.start()])
    node = read(text)
    return None if node is None else Quantity(node, tuple(sorted(set(units))), bool(percents))


def _known(words: list[str], power: str | None) -> list[str]:
    named = [_UNIT_OF.get(word, _UNIT_OF.get(word.removesuffix("s"), "")) for word in words]
    powers = [_POWERS[word] for word in words if word in _POWERS] or ([power] if power else [])
    return [unit + "".join(powers) for unit in named if unit]


def compare(reference: Quantity, given: Quantity) -> Outcome:
    """Return CORRECT, WRONG, or UNEVALUATED if the value is right but leaves arithmetic unfinished."""
    if reference.units and given.units and reference.units != given.units:
        return Outcome.WRONG
    if not _equal_with_percent(reference, given):
        return Outcome.WRONG
    if given.node == reference.node:
        return Outcome.CORRECT
    left = work_left(given.node) - work_left(reference.node)
    hides = fraction(reference.node) is not None and fraction(given.node) is None and not _is_decimal(reference.node)
    return Outcome.UNEVALUATED if left or hides else Outcome.CORRECT


def _is_decimal(node: Node) -> bool:
    """Return whether `node` has a decimal that may be rounded from a value with infinitely many digits."""
    return any(map(_is_decimal, node.parts)) or (node.places or 0) >= APPROXIMATE_PLACES


def _equal_with_percent(reference: Quantity, given: Quantity) -> bool:
    """Check equality with or without a percent sign: 9 % equals both 9 and 0.09, because only the question decides."""
    if equal(reference.node, given.node):
        return True
    if reference.percent == given.percent:
        return False
    hundredth = Node("number", value=Fraction(1, 100))
    percent, plain = (reference, given) if reference.percent else (given, reference)
    return equal(Node("product", (percent.node, hundredth)), plain.node)


def equal(reference: Node, given: Node) -> bool:
    """Return whether two numbers have the same value: rational ones exactly, others to `DIGITS` significant digits.

    A decimal is exactly the number written. With at least APPROXIMATE_PLACES places it may also be rounded or
    truncated from a value with infinitely many digits (0.333333 for 1/3).
    """
    values = fraction(reference), fraction(given)
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1] or _is_rounded(reference, values[1]) or _is_rounded(given, values[0])
    a, b = expression(reference), expression(given)
    if same_value(a, b):
        return True
    pairs = ((reference, b), (given, a))
    return any(_is_decimal(decimal) and _is_rounded(decimal, _decimal(value)) for decimal, value in pairs)


def _is_rounded(decimal: Node, value: Fraction | None) -> bool:
    """Return whether `decimal` is `value`, which no decimal equals, rounded or truncated to enough places."""
    if decimal.kind == "negative":
        return _is_rounded(decimal.parts[0], None if value is None else -value)
    if value is None or decimal.value is None or (decimal.places or 0) < APPROXIMATE_PLACES or _is_finite(value):
        return False
    scaled = abs(decimal.value) * 10**decimal.places if decimal.places else Fraction(0)
    if scaled < 10 ** (APPROXIMATE_PLACES - 1) or (decimal.value < 0) != (value < 0):
        return False
    exact = abs(value) * 10 ** (decimal.places or 0)
    return scaled in (int(exact), int(exact + Fraction(1, 2)))


def _is_finite(value: Fraction) -> bool:
    """Return whether a decimal with finitely many digits equals `value`."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _decimal(value: sympy.Expr) -> Fraction | None:
    """Return a real value to `DIGITS` digits, plus a tiny offset so that no short decimal equals it. Else None."""
    number = value.evalf(DIGITS)
    if not number.is_Float or abs(number) > 10**DIGITS:
        return None
    return Fraction(str(number)) + Fraction(1, 3 * 10 ** (DIGITS + 20))


def same_value(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Return whether two constants agree to `DIGITS` significant digits."""
    if a == b:
        return True
    x, y = a.evalf(DIGITS + 20), b.evalf(DIGITS + 20)
    if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
        return False
    if 0 in (a, b):
        return bool(sympy.simplify(a - b) == 0)
    difference, size = abs(x - y).evalf(), max(abs(x).evalf(), abs(y).evalf())
    return bool(difference <= size * sympy.Float(10) ** -DIGITS)


def expression(node: Node) -> sympy.Expr:
    """Return `node` as a SymPy expression."""
    value = fraction(node)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if node.kind == "constant":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[node.name]
    if node.kind == "trigonometry" and node.parts[0].kind == "degrees":
        return _functions()[node.name](expression(node.parts[0]) * sympy.pi / 180)
    return _functions()[node.name or node.kind](*map(expression, node.parts))


@cache
def _functions() -> dict[str, Callable[..., sympy.Expr]]:
    named = {name: getattr(sympy, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "exp")}
    named |= {f"arc{name}": getattr(sympy, f"a{name}") for name in ("sin", "cos", "tan")}
    return named | {
        "log": lambda value, base=10: sympy.log(value, base),
        "lg": lambda value: sympy.log(value, 10),
        "negative": lambda value: -value,
        "sum": sympy.Add,
        "product": sympy.Mul,
        "quotient": lambda top, bottom: top / bottom,
        "division": lambda top, bottom: top / bottom,
        "power": sympy.Pow,
        "root": lambda value, degree: sympy.real_root(value, degree) if value.is_real else sympy.root(value, degree),
        "factorial": sympy.factorial,
        "binomial": sympy.binomial,
        "absolute": sympy.Abs,
        "degrees": lambda value: value,
    }
