"""Compare what math-verify has parsed: expressions, equations, inequalities, sets, tuples, matrices.

Decimals are exact here. We do not use math-verify's own comparison: its tolerances take 1/2^98 for 1/2^99, and it
takes any two equations without real solutions for the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

POINTS = 4
"""Points at which two expressions must have the same value."""
DIGITS = 30
"""Significant digits to which values that are not rational must agree."""
MAX_ELEMENTS = 50
"""Largest set that is compared in any order, elements."""

_FLIPPED = {
    sympy.LessThan: sympy.GreaterThan,
    sympy.StrictLessThan: sympy.StrictGreaterThan,
    sympy.GreaterThan: sympy.LessThan,
    sympy.StrictGreaterThan: sympy.StrictLessThan,
}


def same(reference: Any, given: Any) -> bool:
    """Return whether two answers are the same. Both are results of math-verify's `parse`, with `exact` decimals."""
    reference, given = _plain(reference), _plain(given)
    if _is_undefined(reference) or _is_undefined(given):
        return False
    if reference == given:
        return True
    if isinstance(reference, sympy.MatrixBase) or isinstance(given, sympy.MatrixBase):
        return _same_matrix(reference, given)
    if _is_relation(reference) and _is_relation(given):
        return _same_relation(reference, given)
    if isinstance(reference, (sympy.Set, sympy.Tuple)) or isinstance(given, (sympy.Set, sympy.Tuple)):
        return _same_collection(reference, given)
    if isinstance(reference, sympy.Expr) and isinstance(given, sympy.Expr):
        return same_expression(reference, given)
    return False


def exact(parsed: Any) -> Any:
    """Return `parsed` with its decimals as fractions."""
    if isinstance(parsed, sympy.MatrixBase):
        return parsed.applyfunc(exact)
    if isinstance(parsed, sympy.Float):
        return sympy.Rational(str(parsed))
    if not isinstance(parsed, sympy.Basic) or not parsed.args or not parsed.has(sympy.Float):
        return parsed
    return parsed.func(*map(exact, parsed.args))


def is_solved(parsed: Any) -> bool:
    """Return whether each inequality, alone or in a list, has its variable alone on one side. True for all else."""
    if isinstance(parsed, (sympy.And, sympy.FiniteSet)):
        return all(map(is_solved, parsed.args))
    if not isinstance(parsed, Relational) or isinstance(parsed, sympy.Eq):
        return True
    sides = parsed.lhs, parsed.rhs
    return any(isinstance(one, sympy.Symbol) and not other.free_symbols for one, other in (sides, sides[::-1]))


def _plain(parsed: Any) -> Any:
    """Evaluate sums, integrals, determinants and matrix products."""
    try:
        return parsed if isinstance(parsed, (Relational, sympy.Set, sympy.Tuple)) else parsed.doit()
    except Exception:  # SymPy may raise any kind of exception
        return parsed


def _is_undefined(parsed: Any) -> bool:
    return isinstance(parsed, sympy.Basic) and parsed.has(sympy.nan, sympy.zoo)


def _is_relation(parsed: Any) -> bool:
    return isinstance(parsed, Relational) or (
        isinstance(parsed, sympy.And) and all(isinstance(arg, Relational) for arg in parsed.args)
    )


def _same_matrix(reference: Any, given: Any) -> bool:
    if not (isinstance(reference, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase)):
        return False
    return reference.shape == given.shape and all(map(same, reference.flat(), given.flat()))


def _same_collection(reference: Any, given: Any) -> bool:
    if isinstance(reference, sympy.Interval) and isinstance(given, sympy.Interval):
        return (reference.left_open, reference.right_open) == (given.left_open, given.right_open) and all(
            map(same, (reference.start, reference.end), (given.start, given.end))
        )
    if _is_relation(given) or _contains_relations(given):
        return _same_set(reference, as_set(given))
    if _is_relation(reference) or _contains_relations(reference):
        return _same_set(as_set(reference), given)
    ours, theirs = _elements(reference), _elements(given)
    if ours is None or theirs is None:
        return _same_set(reference, given)
    ordered = isinstance(reference, (sympy.Tuple, sympy.Interval)) or isinstance(given, (sympy.Tuple, sympy.Interval))
    if len(ours) != len(theirs):
        return False
    return all(map(same, ours, theirs)) if ordered else _same_in_any_order(ours, theirs)


def _elements(parsed: Any) -> Sequence[Any] | None:
    """Return the elements of a tuple, finite set, open interval (a pair looks like one) or single value, else None."""
    if isinstance(parsed, sympy.FiniteSet):
        return getattr(parsed, "_unsorted_args", parsed.args)
    if isinstance(parsed, sympy.Tuple):
        return parsed.args
    if isinstance(parsed, sympy.Interval):
        return (parsed.start, parsed.end) if parsed.left_open and parsed.right_open else None
    return None if isinstance(parsed, sympy.Set) else (parsed,)


def _same_in_any_order(reference: Sequence[Any], given: Sequence[Any]) -> bool:
    if len(given) > MAX_ELEMENTS:
        return False
    left = list(given)
    for element in reference:
        found = next((index for index, other in enumerate(left) if same(element, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_set(reference: Any, given: Any) -> bool:
    if not (isinstance(reference, sympy.Set) and isinstance(given, sympy.Set)):
        return False
    if reference.is_empty is not given.is_empty:
        return False
    return reference.doit() == given.doit() or reference.symmetric_difference(given).is_empty is True


def _contains_relations(parsed: Any) -> bool:
    return isinstance(parsed, sympy.FiniteSet) and any(map(_is_relation, parsed.args))


def as_set(parsed: Any) -> Any:
    """Return the real numbers that satisfy relations in one variable. In a list, one of them is enough."""
    if isinstance(parsed, sympy.FiniteSet) and all(map(_is_relation, parsed.args)):
        return sympy.Union(*map(as_set, parsed.args))
    if not _is_relation(parsed) or len(parsed.free_symbols) != 1:
        return None
    # Parsed relations are not evaluated, and math-verify has its own class for a chain. as_set needs SymPy's classes.
    plain = sympy.And(*(part.func(*part.args) for part in _parts(parsed)))
    return plain.as_set()


def _same_relation(reference: Any, given: Any) -> bool:
    """Check that both state the same relation. Sides may be swapped; an equation may be multiplied by a number."""
    parts = _parts(reference), _parts(given)
    if len(parts[0]) == len(parts[1]) and (
        all(map(_same_single, *parts)) or all(map(_same_single, parts[0], reversed(parts[1])))
    ):
        return True
    if isinstance(reference, sympy.Eq) or isinstance(given, sympy.Eq):
        return False
    symbols = reference.free_symbols
    return len(symbols) == 1 and symbols == given.free_symbols and _same_set(as_set(reference), as_set(given))


def _parts(relation: Any) -> Sequence[Any]:
    if isinstance(relation, sympy.And):
        return tuple(getattr(relation, "_unsorted_args", relation.args))
    return (relation,)


def _same_single(reference: Relational, given: Relational) -> bool:
    if not reference.free_symbols or not given.free_symbols:  # without a variable, the sides must be identical
        return type(reference) is type(given) and set(reference.args) == set(given.args)
    if any(not isinstance(side, sympy.Expr) for side in (*reference.args, *given.args)):
        return type(reference) is type(given) and all(map(same, reference.args, given.args))
    ours, theirs = reference.lhs - reference.rhs, given.lhs - given.rhs
    if _FLIPPED.get(type(reference)) is type(given) and type(reference) not in (sympy.Eq, sympy.Ne):
        theirs = -theirs
    elif type(reference) is not type(given):
        return False
    ratio = _constant_ratio(ours, theirs)
    return ratio is not None and (ratio > 0 or isinstance(reference, (sympy.Eq, sympy.Ne)))


def _constant_ratio(a: sympy.Expr, b: sympy.Expr) -> Any:
    """Return the number r with a = r * b, or with this relation between their numerators, or None if there is none."""
    for x, y in ((a, b), (sympy.fraction(sympy.together(a))[0], sympy.fraction(sympy.together(b))[0])):
        for point in islice(_points(x, y), POINTS):
            top, bottom = _value(x, point), _value(y, point)
            if top is None or bottom is None or 0 in (top, bottom):
                continue
            ratio = sympy.nsimplify(top / bottom, rational=True) if not (top / bottom).is_Rational else top / bottom
            if ratio.is_real and same_expression(x, ratio * y):
                return ratio
            break
    return None


def same_expression(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Return whether two expressions are equal, by their values at fixed points where both have one."""
    if isinstance(a, sympy.Symbol) or isinstance(b, sympy.Symbol):
        names = _letters(a), _letters(b)
        if names[0] is not None and names[1] is not None and (len(names[0]) > 1 or len(names[1]) > 1):
            return names[0] == names[1]
    if a.has(AppliedUndef) or b.has(AppliedUndef) or a.has(sympy.oo) or b.has(sympy.oo):
        return bool(sympy.simplify(a - b) == 0)
    compared = 0
    for point in _points(a, b):
        x, y = _value(a, point), _value(b, point)
        if x is None or y is None:
            continue
        if not _close(x, y):
            return False
        compared += 1
        if compared == POINTS or not point:
            return True
    return compared > 0 or bool(sympy.simplify(a - b) == 0)


def _letters(parsed: sympy.Expr) -> str | None:
    r"""Return the letters of a word in lower case. It is one symbol inside \text, and a product of letters outside."""
    if isinstance(parsed, sympy.Symbol):
        return str(parsed.name.lower())
    if isinstance(parsed, sympy.Mul) and all(arg == sympy.E or isinstance(arg, sympy.Symbol) for arg in parsed.args):
        return "".join("e" if arg == sympy.E else arg.name for arg in parsed.args).lower()
    return "e" if parsed == sympy.E else None


def _points(a: sympy.Expr, b: sympy.Expr) -> Iterator[dict]:
    """Yield test values for the variables of `a` and `b`: unrelated fractions of both signs; {} without variables."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        yield {}
        return
    for turn in range(2 * POINTS):
        yield {
            symbol: sympy.Rational(
                (-1) ** ((turn >> (index % 2)) & 1) * (7 * index + 5 * turn + 4), 3 + index + 2 * turn
            )
            for index, symbol in enumerate(symbols)
        }


def _value(expression: sympy.Expr, point: dict) -> Any:
    """Return the value at `point`, exact if it is rational, or None if there is no finite value."""
    value = expression.subs(point).doit() if point else expression.doit()
    if value.is_Rational:
        return value
    value = value.evalf(DIGITS + 10)
    return value if value.is_number and value.is_finite else None


def _close(x: Any, y: Any) -> bool:
    if x.is_Rational and y.is_Rational:
        return bool(x == y)
    size = max(abs(x).evalf(), abs(y).evalf(), sympy.Float(10) ** -DIGITS)
    return bool(abs(x - y).evalf() <= size * sympy.Float(10) ** -DIGITS)
