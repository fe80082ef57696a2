r"""Read a number written in LaTeX, exactly.

`read` returns a tree of what is written and evaluates nothing: 2+3 stays a sum. `fraction` returns the exact value of
a tree if it is rational.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial, isqrt, prod

MAX_BITS = 20_000
"""Longest power that is evaluated here, bits."""
MAX_DEPTH = 60
"""Deepest nesting of brackets that is read."""

_SPACE = re.compile(r"(?:\s|\\[,;:!> ]|~|\\q?quad(?![a-zA-Z])|\{\})*")
_NUMBER = re.compile(
    r"(?:[0-9]{1,3}(?:\{,\}[0-9]{3})+|[0-9]+)?\.[0-9]+|[0-9]{1,3}(?:(?:\{,\}|,(?:\\! ?)?)[0-9]{3})+(?![0-9])|[0-9]+\.?"
)
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]{1,4})(?![0-9])")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)")
_WORD = re.compile(r"[a-zA-Z]+")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))|\\degree(?![a-zA-Z])")

TRIGONOMETRIC = dict.fromkeys(("sin", "cos", "tan", "cot", "sec", "csc"), "trigonometry")
INVERSE = dict.fromkeys(("arcsin", "arccos", "arctan"), "inverse trigonometry")
FUNCTIONS = TRIGONOMETRIC | INVERSE | {"log": "logarithm", "ln": "logarithm", "lg": "logarithm", "exp": "exponential"}
_TIMES, _OVER = ("cdot", "times", "ast"), ("div",)


@dataclass(frozen=True)
class Node:
    """A number as it is written: an operation `kind` on `parts`, or a leaf."""

    kind: str  # number, constant, sum, product, quotient, power, root, factorial, binomial, absolute, or of FUNCTIONS
    parts: tuple[Node, ...] = ()
    value: Fraction | None = None  # of a number
    name: str = ""  # of a constant or function
    places: int | None = None  # of a decimal, after the point


class NotANumber(Exception):
    """The text is not a number that this module can read."""


def read(text: str) -> Node | None:
    """Return the tree of a number, or None if `text` is not one number (a variable, relation, word, list, ...)."""
    reader = _Reader(text)
    try:
        node = reader.sum()
    except (NotANumber, RecursionError):
        return None
    return node if reader.position == len(text) else None


class _Reader:
    """Parser that reads from left to right. `position` is where the next token starts, never at a space."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.depth = text, 0, 0
        self._skip(0)

    def _skip(self, count: int) -> None:
        match = _SPACE.match(self.text, self.position + count)
        self.position = match.end() if match else len(self.text)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self._skip(match.end() - self.position)
        return match

    def _next(self) -> str:
        return self.text[self.position : self.position + 1]

    def _command(self) -> str:
        match = _COMMAND.match(self.text, self.position)
        return match[1] if match else ""

    def _expect(self, symbol: str) -> None:
        if not self.text.startswith(symbol, self.position):
            raise NotANumber
        self._skip(len(symbol))

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotANumber
        terms, sign = [], self._sign()
        terms.append(_signed(sign, self._product()))
        while self._next() in ("+", "-"):
            sign = self._sign()
            terms.append(_signed(sign, self._product()))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def _sign(self) -> str:
        sign = self._next()
        if sign not in ("+", "-"):
            return ""
        self._skip(1)
        return sign

    def _product(self) -> Node:
        """Parse factors, with or without an operator between them. 2\\frac{1}{2} is a mixed number."""
        left, mixed_before = self._power(), None
        while True:
            command, symbol = self._command(), self._next()
            if symbol == "*" or command in _TIMES:
                self._skip(1 if symbol == "*" else len(command) + 1)
                left, mixed_before = _product(left, _signed(self._sign(), self._power())), None
            elif symbol == "/" or command in _OVER:
                self._skip(1 if symbol == "/" else len(command) + 1)
                kind = "quotient" if symbol == "/" else "division"
                left, mixed_before = Node(kind, (left, _signed(self._sign(), self._power()))), None
            elif symbol and (symbol in "({" or symbol.isalpha() or command in _STARTS or symbol in "0123456789"):
                start = self.position
                right = self._power()
                if mixed_before is None and is_whole(left) and _is_fraction(right):
                    left = mixed_before = Node("number", value=(left.value or 0) + exact(right))
                elif self.text[start] in "0123456789":
                    raise NotANumber  # "3 4" is not a product
                else:
                    left = _product(left, right)
            else:
                return left

    def _power(self) -> Node:
        base = self._atom()
        while True:
            if self._take(_DEGREES):
                base = Node("degrees", (base,))
            elif self._next() == "^":
                self._skip(1)
                base = Node("power", (base, self._argument()))
            elif self._next() == "!":
                self._skip(1)
                base = Node("factorial", (base,))
            else:
                return base

    def _argument(self) -> Node:
        """Parse a group in braces or a single token (a digit, a letter or a command)."""
        if self._next() == "{":
            self._skip(1)
            node = self.sum()
            self._expect("}")
            return node
        if self._next() in ("+", "-"):
            return _signed(self._sign(), self._argument())
        if self._next().isdigit() and self._next().isascii():
            digit = self._next()
            self._skip(1)
            return Node("number", value=Fraction(int(digit)))
        return self._atom()

    def _atom(self) -> Node:
        symbol = self._next()
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]"), ("|", "|")):
            if symbol == opening:
                self._skip(1)
                node = self.sum()
                self._expect(closing)
                return Node("absolute", (node,)) if symbol == "|" else node
        if match := self._take(_NUMBER):
            return self._number(match.group())
        if symbol == "\\":
            return self._from_command()
        match = _WORD.match(self.text, self.position)
        if match and match.group() in ("e", "i", "pi", "sqrt"):
            self._skip(match.end() - match.start())
            return self._root() if match.group() == "sqrt" else Node("constant", name=match.group())
        if match and set(match.group()) <= {"e", "i"} and len(match.group()) < 3:
            self._skip(1)
            return Node("constant", name=symbol)
        raise NotANumber

    def _number(self, digits: str) -> Node:
        digits = re.sub(r"[^0-9.]", "", digits)
        places = len(digits.partition(".")[2]) if "." in digits.rstrip(".") else None
        value = Fraction(digits.rstrip("."))
        exponent = _EXPONENT.match(self.text, self.position)
        if exponent and self.text[self.position - 1] in ".0123456789":  # 5e-05, as printed by programs
            self._skip(exponent.end() - self.position)
            value *= Fraction(10) ** int(exponent[1])
        return Node("number", value=value, places=places)

    def _from_command(self) -> Node:
        name = self._command()
        self._skip(len(name) + 1)
        if name == "frac":
            return Node("quotient", (self._argument(), self._argument()))
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return Node("binomial", (self._argument(), self._argument()))
        if name == "pi":
            return Node("constant", name="pi")
        if name in FUNCTIONS:
            return self._function(name)
        if name in ("lvert", "vert"):
            node = self.sum()
            if self._command() not in ("rvert", "vert"):
                raise NotANumber
            self._skip(len(self._command()) + 1)
            return Node("absolute", (node,))
        raise NotANumber

    def _root(self) -> Node:
        degree = Node("number", value=Fraction(2))
        if self._next() == "[":
            self._skip(1)
            degree = self.sum()
            self._expect("]")
        return Node("root", (self._argument(), degree))

    def _function(self, name: str) -> Node:
        base = None
        exponent = None
        if name == "log" and self._next() == "_":
            self._skip(1)
            base = self._argument()
        if self._next() == "^" and not _DEGREES.match(self.text, self.position):
            self._skip(1)
            exponent = self._argument()
        argument = self._power()
        # The argument in \sin 2\pi is the whole product. \sin(x) y is not read.
        while self._next() == "\\" and self._command() in ("pi", "frac", "sqrt"):
            argument = _product(argument, self._power())
        node = Node(FUNCTIONS[name], (argument,) if base is None else (argument, base), name=name)
        return node if exponent is None else Node("power", (node, exponent))


_STARTS = frozenset(("frac", "sqrt", "binom", "dbinom", "tbinom", "pi", *FUNCTIONS))


def _signed(sign: str, node: Node) -> Node:
    if sign != "-":
        return node
    if node.kind == "number" and node.value is not None and node.value >= 0:
        return Node("number", value=-node.value, places=node.places)
    return Node("negative", (node,))


def _product(left: Node, right: Node) -> Node:
    return Node("product", (*(left.parts if left.kind == "product" else (left,)), right))


def is_whole(node: Node) -> bool:
    return node.kind == "number" and node.places is None and node.value is not None and node.value.denominator == 1


def _is_fraction(node: Node) -> bool:
    """Return whether `node` can be the fraction of a mixed number: integers above and below, value between 0 and 1."""
    return node.kind == "quotient" and all(map(is_whole, node.parts)) and 0 < (fraction(node) or 0) < 1


def exact(node: Node) -> Fraction:
    """Return the exact value of `node`. Raises NotANumber if it is not rational."""
    value = fraction(node)
    if value is None:
        raise NotANumber
    return value


def fraction(node: Node) -> Fraction | None:
    """Return the exact value of a number with only rational parts, else None (also if it would be too long)."""
    if node.kind == "number":
        return node.value
    values = []
    for part in node.parts:
        value = fraction(part)
        if value is None:
            return None
        values.append(value)
    try:
        return _EXACT[node.kind](*values) if node.kind in _EXACT else None
    except (ArithmeticError, ValueError):
        return None


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1:
        root = _root(base, Fraction(exponent.denominator))
        return None if root is None else _power(root, Fraction(exponent.numerator))
    return None if bits * abs(exponent.numerator) > MAX_BITS else base**exponent.numerator


def _root(value: Fraction, degree: Fraction) -> Fraction | None:
    """Return the rational root of a rational number, or None if it has none."""
    if degree.denominator != 1 or not 2 <= degree <= 64 or (value < 0 and degree % 2 == 0):
        return None
    top, bottom = (_whole_root(abs(part), int(degree)) for part in (value.numerator, value.denominator))
    return None if top is None or bottom is None else Fraction(top if value >= 0 else -top, bottom)


def _whole_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while degree > 2 and low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    root = isqrt(value) if degree == 2 else low
    return root if root**degree == value else None


def _factorial(value: Fraction) -> Fraction | None:
    return Fraction(factorial(int(value))) if value.denominator == 1 and 0 <= value <= 1000 else None


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 1000:
        return None
    return Fraction(comb(int(n), int(k)))


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "negative": lambda value: -value,
    "sum": lambda *terms: sum(terms, Fraction(0)),
    "product": lambda *factors: prod(factors, start=Fraction(1)),
    "quotient": lambda top, bottom: top / bottom,
    "division": lambda top, bottom: top / bottom,
    "power": _power,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "absolute": abs,
    "degrees": lambda value: value,  # outside of a function the sign is only a unit
}
