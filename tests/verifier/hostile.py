r"""Generate completions that try to hang, crash, fill or take over the judging process, the same for each seed.

Each has a closed \boxed{...}, unless its kind is about text around boxes. None is the right answer, except by accident.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

REFERENCES = ("42", r"\frac{1}{2}", "(1, 2)", "x^2+1", "[0, 1)", r"\{1, 2, 3\}", "x = 5", r"\sqrt{2}", r"\text{east}")
MEGABYTE = 2**20
CANARY = "CANARY"  # stands for the path of a file that code makes if it gets to run


class Hostile(NamedTuple):
    kind: str
    completion: str
    reference: str


def hostile(seed: int, count: int, canary: Path) -> Iterator[Hostile]:
    """Yield `count` completions, of all kinds in turn. If their code runs, it creates the file `canary`."""
    rng = random.Random(seed)
    for kind, make in itertools.islice(itertools.cycle(KINDS.items()), count):
        yield Hostile(kind, make(rng).replace(CANARY, str(canary)), rng.choice(REFERENCES))


def boxed(content: str) -> str:
    return rf"\boxed{{{content}}}"


def nested_braces(rng: random.Random) -> str:
    depth = rng.choice((50, 1_000, 100_000))
    opening = rng.choice(("{", r"\frac{", r"\sqrt{", r"\boxed{", "(", r"\left(", r"\begin{array}{"))
    closing = {"(": ")", r"\left(": r"\right)"}.get(opening, "}")
    return boxed(opening * depth + "1" + closing * rng.choice((depth, depth - 1, depth // 2, 0)))


def deep_expression(rng: random.Random) -> str:
    """Return a deeply nested expression that is short enough to be parsed."""
    depth = rng.randint(20, 90)
    before, after = rng.choice(((r"\sqrt{", "}"), (r"\frac{1}{1+", "}"), ("x^{", "}"), (r"\sin(", ")"), ("-(", ")")))
    return boxed(before * depth + "2" + after * depth)


def huge_power(rng: random.Random) -> str:
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    forms = (
        f"{a}^{{{b}^{{{c}^{{{a}}}}}}}",
        f"10^{{10^{{{a}}}}}",
        f"{a}^{b}^{c}",
        f"{a}^{{{rng.randint(10**6, 10**9)}}}",
        f"({a}x+{b})^{{{10 * a * c}}}",
        f"{a}^{{-{b}^{{{c}}}}}",
        rf"\frac{{{a}^{{{b}^{{{c}}}}}}}{{{b}^{{{a}^{{{c}}}}}}}",
        f"0.{a}^{{{b}^{{{c}^{{{a}}}}}}}",
        rf"\log_{{{a}}}({b}^{{{c}^{{{a}^{{{b}}}}}}})",
        rf"\sqrt[{a}^{{{b}}}]{{{c}}}",
    )
    return boxed(rng.choice(forms))


def factorial_tower(rng: random.Random) -> str:
    n = rng.choice((9, 50, 10**4, 10**9))
    forms = (
        f"{n}" + "!" * rng.randint(2, 8),
        f"(({n}!)!)!",
        rf"\binom{{{n}!}}{{{n}}}",
        f"{n}!^{{{n}!}}",
        f"{n}!/{n + 1}!",
    )
    return boxed(rng.choice(forms))


def giant_matrix(rng: random.Random) -> str:
    size = rng.randint(4, 14)
    entry = rng.choice(("x+1", "9", r"\pi", "a^2"))
    rows = r"\\".join("&".join([entry] * size) for _ in range(size))
    matrix = rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"
    return boxed(matrix + rng.choice(("", "^{99}", "^{-1}", "^{10^{9}}")))


def odd_characters(rng: random.Random) -> str:
    alphabet = "\0\x01\x1b\r\n\t\u202e\u2028\ufeff\ud800\udfff\U0010ffff\u0301½²⁹∞٣42+-^_{}\\$&#%"
    content = "".join(rng.choices(alphabet, k=rng.randint(1, 200)))
    return content + boxed(content.replace("{", "").replace("}", ""))


def random_bytes(rng: random.Random) -> str:
    return boxed(
        rng.randbytes(rng.randint(1, 900)).decode("utf-8", "surrogateescape").translate({123: None, 125: None})
    )


def megabyte_line(rng: random.Random) -> str:
    unit = rng.choice(("9", "x", "{}", r"\boxed{", "}", "$", "\\", r"\frac", "#### ", "1+", "\ud800", r"\boxed{1}"))
    line = unit * (MEGABYTE // len(unit))
    return rng.choice((line, boxed(line), line + boxed("7"), boxed("7") + line))


def latex_bomb(rng: random.Random) -> str:
    n = 10 ** rng.randint(3, 30)
    forms = (
        r"\def\a{\a\a}\a",
        r"\newcommand{\b}{\b\b\b}\b",
        rf"\sum_{{i=1}}^{{{n}}} i^{{i}}",
        rf"\prod_{{i=1}}^{{{n}}} i",
        rf"\sum_{{i=1}}^{{{n}}}\sum_{{j=1}}^{{{n}}} \frac{{1}}{{i+j}}",
        r"\int_0^1 \int_0^1 e^{x^{y^{x}}} \sin(x^{99}) dx dy",
        rf"\lim_{{x \to \infty}} \frac{{x^{{{n}}}}}{{e^{{x}}}}",
        rf"\gcd({n}!, {n + 1}!)",
        rf"{n} \bmod {n - 1}^{{{n}}}",
        r"\begin{cases}" * 30 + "1" + r"\end{cases}" * 30,
        rf"\lfloor {n}^{{0.5}} \rfloor^{{{n}}}",
    )
    return boxed(rng.choice(forms))


def algebra(rng: random.Random) -> str:
    """Return an expression that makes SymPy simplify, solve and compare."""
    letters, power = "abcdxyz", rng.randint(9, 60)
    terms = "+".join(f"{rng.randint(1, 99)}{rng.choice(letters)}^{{{rng.randint(1, power)}}}" for _ in range(12))
    forms = (
        f"({terms})^{{{power}}}",
        f"x^{{{power}}}+{terms}=0",
        rf"\sin(\cos(\tan({terms})))",
        rf"\sqrt{{{terms}}}+\sqrt[3]{{{terms}}}",
        rf"({terms}, {terms}) \cup [{terms}, \infty)",
        rf"\{{{', '.join(f'x^{{{i}}}' for i in range(90))}\}}",
        f"{terms} < x < {terms}",
        rf"\frac{{{terms}}}{{{terms}}}",
    )
    return boxed(rng.choice(forms))


def mutated(rng: random.Random) -> str:
    """Return an honest answer with a few characters changed, doubled or removed."""
    honest = [r"\left( 3, \frac{\pi}{2} \right)", r"x \in [-2, 7] \cup \{9\}", r"\begin{pmatrix} -1 \\ 3 \end{pmatrix}"]
    text = list(rng.choice([*honest, r"6 - 5i", r"\$32,\!348.50", r"y = 2x + \sqrt{51}", r"11\frac{5}{9}\text{ cm}^2"]))
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(text))
        text[place : place + 1] = rng.choice(([], [text[place]] * 2, [rng.choice("\\{}^_!,;%&0123456789ix")]))
    return boxed("".join(text) + "}" * 3)


def injection(rng: random.Random) -> str:
    touch = f"open('{CANARY}', 'w')"
    system = f"__import__('os').system('touch {CANARY}')"
    wrapped = (f"eval({system!r})", f"exec({touch!r})", f"(lambda: {system})()", f"[{touch} for x in [1]]")
    code = rng.choice((touch, system, *wrapped))
    forms = (
        code,
        code.replace("_", r"\_"),
        rf"\text{{{code}}}",
        rf"\operatorname{{{code}}}",
        rf"\mathrm{{{code}}}(1)",
        f"x_{{{code}}}",
        f"2^{{{code}}}",
        f"${code}$",
        f"1; {code}",
        f"{code} = 5",
        rf"\text{{().__class__.__base__.__subclasses__()}}; {code}",
        f"Integer({code})",
        f'"; {code}; "',
        f"`touch {CANARY}` $(touch {CANARY})",
    )
    return boxed(rng.choice(forms))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "nested braces": nested_braces,
    "deep expression": deep_expression,
    "huge power": huge_power,
    "factorial tower": factorial_tower,
    "giant matrix": giant_matrix,
    "odd characters": odd_characters,
    "random bytes": random_bytes,
    "megabyte line": megabyte_line,
    "LaTeX bomb": latex_bomb,
    "algebra": algebra,
    "mutated": mutated,
    "injection": injection,
}
