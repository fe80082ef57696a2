"""Find the arithmetic that a number, as it is written, leaves unfinished."""

from __future__ import annotations

from collections.abc import Callable

from megatron_rapo.verifier.numerals import Node, exact, fraction, is_whole


def work_left(node: Node) -> frozenset[str]:
    r"""Return the names of the operations that are still to be done: none for a number in a final form.

    These are final: 12, -3.5, 7/2 (also unreduced as 14/4, but not 14/2), 2\frac{1}{2}, 5\times10^{-5}, 3\sqrt{2},
    \sqrt{8} (but not \sqrt{16}), \frac{1+\sqrt{5}}{2}, 3\pi, e^2, 2+3i. No two parts can be combined, except in roots.
    """
    left: set[str] = set()
    for part in node.parts:
        left |= work_left(part)
    is_unfinished = _UNFINISHED.get(node.kind)
    if node.kind not in _FINAL and (is_unfinished is None or is_unfinished(node)):
        left.add(_operation(node))
    return frozenset(left)


def _operation(node: Node) -> str:
    """Return the name of the operation at the top of `node`. A fractional power of a rational number is a root."""
    if node.kind == "negative":
        return "sign"
    return "root" if node.kind == "power" and _is_fractional_power(node) else node.kind


def _is_fractional_power(node: Node) -> bool:
    base, exponent = node.parts
    return fraction(base) is not None and fraction(exponent) is not None and not is_whole(exponent)


def _negative_unfinished(node: Node) -> bool:
    return node.parts[0].kind in ("negative", "number")


def _sum_unfinished(node: Node) -> bool:
    """Return whether two terms can still be added: they differ by a rational factor, like 2 and 3 or pi and 2 pi."""
    keys = [_irrational_part(term) for term in node.parts]
    return len(set(keys)) < len(keys)


def _irrational_part(node: Node) -> tuple[str, ...]:
    """Return the irrational factors of a term, as text; empty for a rational term."""
    if fraction(node) is not None:
        return ()
    if node.kind == "negative":
        return _irrational_part(node.parts[0])
    if node.kind == "product":
        return tuple(sorted(repr(part) for part in node.parts if fraction(part) is None))
    if node.kind == "quotient" and fraction(node.parts[1]) is not None:
        return _irrational_part(node.parts[0])
    return (repr(node),)


def _product_unfinished(node: Node) -> bool:
    """Return whether factors can still be multiplied. One rational coefficient is final, and so is a x 10^n."""
    rational = [part for part in node.parts if fraction(part) is not None]
    if len(rational) == 2 == len(node.parts) and _is_power_of_ten(rational[1]) and 1 <= abs(exact(rational[0])) < 10:
        return False
    roots = sum(part.kind == "root" and fraction(part) is None for part in node.parts)
    return len(rational) > 1 or roots > 1 or node.parts.count(Node("constant", name="i")) > 1


def _is_power_of_ten(node: Node) -> bool:
    return node.kind == "power" and node.parts[0].value == 10 and is_whole(node.parts[1])


def _quotient_unfinished(node: Node) -> bool:
    """Return whether the division can still be done. A fraction of integers is final unless it equals an integer."""
    top, bottom = node.parts
    if fraction(top) is None or fraction(bottom) is None:
        return _irrational_part(top) == _irrational_part(bottom) or _has_i(bottom)
    value = fraction(node)
    return not (is_whole(top) and is_whole(bottom) and value is not None and value.denominator != 1)


def _has_i(node: Node) -> bool:
    return (node.kind, node.name) == ("constant", "i") or any(map(_has_i, node.parts))


def _power_unfinished(node: Node) -> bool:
    """Return whether the power can be evaluated. Powers of ten, e and pi are final."""
    base = node.parts[0]
    if _is_fractional_power(node):
        return _root_unfinished(node)
    return not _is_power_of_ten(node) and (base.kind != "constant" or base.name == "i")


def _root_unfinished(node: Node) -> bool:
    return fraction(node) is not None


_FINAL = ("number", "constant", "degrees")
_UNFINISHED: dict[str, Callable[[Node], bool]] = {
    "negative": _negative_unfinished,
    "sum": _sum_unfinished,
    "product": _product_unfinished,
    "quotient": _quotient_unfinished,
    "power": _power_unfinished,
    "root": _root_unfinished,
}
"""Says for each kind of node whether it is unfinished. Kinds that are neither here nor in _FINAL always are."""
