"""Products of a number and one digit, and the careless student whose work the base model is taught.

A problem is `a*b`, b from 2 to 9; a has three digits in an easy problem and four in a hard one (and two in a third
kind, which the base model is taught and nobody is judged on). The student multiplies digit by digit, as at school,
and forgets each carry with probability `forgets`: the right answer is among the student's answers, and the more
carries a product has, the rarer it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MULTIPLIERS = range(2, 10)
TWO_DIGITS, THREE_DIGITS, FOUR_DIGITS = range(10, 100), range(100, 1000), range(1000, 10000)
KINDS = ("easy", "hard")

SPLIT_SEED = 1
"""One split for all seeds of the study: what is judged is never what settings were chosen on, or learned from."""


@dataclass(frozen=True, order=True)
class Product:
    """`multiplicand * multiplier`."""

    multiplicand: int
    multiplier: int

    @property
    def text(self) -> str:
        return f"{self.multiplicand}*{self.multiplier}"

    @property
    def prompt(self) -> str:
        return f"{self.text}\n"

    @property
    def answer(self) -> str:
        return str(self.multiplicand * self.multiplier)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Disjoint sets of problems, each in shuffled order."""

    taught: dict[str, list[Product]]  # the base model's, by kind: tiny, easy, hard
    rl_train: list[Product]  # easy
    dev: dict[str, list[Product]]  # easy, hard: settings are chosen on these
    test: dict[str, list[Product]]  # easy, hard: the study is judged on these


def make_splits(*, num_judged: int = 300, num_rl_train: int = 2000, seed: int = SPLIT_SEED) -> Splits:
    """Shuffle each kind of problem and cut: `num_judged` to test, as many to develop, RL training, the rest is taught.

    Raises:
        ValueError: if no easy problem would be left to teach.
    """
    rng = random.Random(seed)
    kinds = {}
    for kind, multiplicands in (("tiny", TWO_DIGITS), ("easy", THREE_DIGITS), ("hard", FOUR_DIGITS)):
        kinds[kind] = [Product(a, b) for a in multiplicands for b in MULTIPLIERS]
        rng.shuffle(kinds[kind])
    judged, trained = 2 * num_judged, 2 * num_judged + num_rl_train
    if trained >= len(kinds["easy"]):
        raise ValueError(
            f"2 * num_judged + num_rl_train = {trained}: there are {len(kinds['easy'])} easy problems in all, and some "
            "must be left to teach; ask for fewer."
        )
    return Splits(
        taught={"tiny": kinds["tiny"], "easy": kinds["easy"][trained:], "hard": kinds["hard"][judged:]},
        rl_train=kinds["easy"][judged:trained],
        dev={kind: kinds[kind][num_judged:judged] for kind in KINDS},
        test={kind: kinds[kind][:num_judged] for kind in KINDS},
    )


def carries(product: Product) -> int:
    """Return the number of carries from one column to the next. Each can be forgotten."""
    count = carry = 0
    for digit in reversed(str(product.multiplicand)[1:]):
        carry = (int(digit) * product.multiplier + carry) // 10
        count += carry > 0
    return count


def careless_answer(product: Product, *, forgets: float, rng: random.Random) -> str:
    """Return the student's product. The result of the first column is written out, not carried."""
    digits, carry = "", 0
    *columns, first = (int(digit) for digit in reversed(str(product.multiplicand)))
    for digit in columns:
        carry, written = divmod(digit * product.multiplier + carry, 10)
        digits = f"{written}{digits}"
        if carry and rng.random() < forgets:
            carry = 0
    return f"{first * product.multiplier + carry}{digits}"


def student_attempts(
    taught: dict[str, list[Product]], *, shares: dict[str, float], forgets: float, num_attempts: int, seed: int
) -> Iterator[tuple[Product, str]]:
    r"""Return the lessons of the base model: problems with replacement, kinds by `shares`, answers as `\boxed{...}`."""
    rng = random.Random(f"student {seed}")
    kinds, weights = list(shares), list(shares.values())
    for _ in range(num_attempts):
        [kind] = rng.choices(kinds, weights)
        product = rng.choice(taught[kind])
        yield product, rf"\boxed{{{careless_answer(product, forgets=forgets, rng=rng)}}}"


def write_problems(path: Path, problems: dict[str, list[Product]]) -> None:
    """Write JSON lines of {"id", "problem", "answer"}, all strings. The id is KIND-INDEX."""
    rows = [
        {"id": f"{kind}-{index}", "problem": product.text, "answer": product.answer}
        for kind, products in problems.items()
        for index, product in enumerate(products)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
