"""Say what arithmetic a number, as it is written, leaves to do."""

from __future__ import annotations

from collections.abc import Callable

from megatron_rapo.verifier.numerals import Node, exact, fraction, is_whole


def work_left(node: Node) -> frozenset[str]:
    r"""Return the names of the operations that are left to do; none for a number in a final form.

    Final are 12, -3.5, 7/2 (in any terms, but not 14/2), 2\frac{1}{2}, 5\times10^{-5}, 3\sqrt{2}, \sqrt{8} (but not
    \sqrt{16}), \frac{1+\sqrt{5}}{2}, 3\pi, e^2, 2+3i: what stands there cannot be put together further, but for roots.
    """
    left: set[str] = set()
    for part in node.parts:
        left |= work_left(part)
    if node.kind in _LEFT:
        left |= _LEFT[node.kind](node)
    elif node.kind not in ("number", "constant", "degrees"):
        left.add(node.kind)
    return frozenset(left)


def _of_negative(node: Node) -> set[str]:
    return {"sign"} if node.parts[0].kind in ("negative", "number") else set()


def _of_sum(node: Node) -> set[str]:
    """Return {"sum"} if terms can still be added: they differ by a rational factor, like 2 and 3 or pi and 2 pi."""
    keys = [_irrational_part(term) for term in node.parts]
    return {"sum"} if len(set(keys)) < len(keys) else set()


def _irrational_part(node: Node) -> tuple[str, ...]:
    if fraction(node) is not None:
        return ()
    if node.kind == "negative":
        return _irrational_part(node.parts[0])
    if node.kind == "product":
        return tuple(sorted(repr(part) for part in node.parts if fraction(part) is None))
    if node.kind == "quotient" and fraction(node.parts[1]) is not None:
        return _irrational_part(node.parts[0])
    return (repr(node),)


def _of_product(node: Node) -> set[str]:
    """Return {"product"} if factors can still be multiplied. Accept one rational coefficient, and a x 10^n."""
    rational = [part for part in node.parts if fraction(part) is not None]
    if len(rational) == 2 == len(node.parts) and _is_power_of_ten(rational[1]) and 1 <= abs(exact(rational[0])) < 10:
        return set()
    roots = sum(part.kind == "root" and fraction(part) is None for part in node.parts)
    i = Node("constant", name="i")
    return {"product"} if len(rational) > 1 or roots > 1 or node.parts.count(i) > 1 else set()


def _is_power_of_ten(node: Node) -> bool:
    return node.kind == "power" and node.parts[0].value == 10 and is_whole(node.parts[1])


def _of_quotient(node: Node) -> set[str]:
    """Return {"quotient"} if the division can go on. A fraction of integers is final unless its value is an integer."""
    values = [fraction(part) for part in node.parts]
    if None in values:
        same = _irrational_part(node.parts[0]) == _irrational_part(node.parts[1])
        return {"quotient"} if same or _has_i(node.parts[1]) else set()
    value = fraction(node)
    whole = all(is_whole(part) for part in node.parts)
    return set() if whole and value is not None and value.denominator != 1 else {"quotient"}


def _has_i(node: Node) -> bool:
    return (node.kind, node.name) == ("constant", "i") or any(map(_has_i, node.parts))


def _of_power(node: Node) -> set[str]:
    base, exponent = node.parts
    if _is_power_of_ten(node) or (base.kind == "constant" and base.name != "i"):
        return set()
    if fraction(base) is not None and fraction(exponent) is not None and not is_whole(exponent):
        return {"root"} if fraction(node) is not None else set()
    return {"power"}


def _of_root(node: Node) -> set[str]:
    return {"root"} if fraction(node) is not None else set()


_LEFT: dict[str, Callable[[Node], set[str]]] = {
    "negative": _of_negative,
    "sum": _of_sum,
    "product": _of_product,
    "quotient": _of_quotient,
    "power": _of_power,
    "root": _of_root,
}
