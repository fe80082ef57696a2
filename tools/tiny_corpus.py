"""Make arithmetic problems, and solutions with steps as a careless student would write them.

A problem is `a*b+c`, for instance `37*6+58`. Its solution is one line of four steps:

    30*6=180,7*6=42,180+42=222,222+58=280 \\boxed{280}

The student knows the method but makes mistakes. A step goes wrong with some probability, in one of a few
human ways. Later steps use the wrong value, and sometimes the final `\\boxed{}` is forgotten. A model
pretrained on such attempts can do every step, but not reliably. Reinforcement learning with a verifier
repairs that.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

MULTIPLICANDS = range(11, 100)
MULTIPLIERS = range(2, 10)
ADDENDS = range(10, 100)

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """`multiplicand * multiplier + addend`: two digits, one digit, two digits."""

    multiplicand: int
    multiplier: int
    addend: int

    @property
    def text(self) -> str:
        return f"{self.multiplicand}*{self.multiplier}+{self.addend}"

    @property
    def prompt(self) -> str:
        return f"{self.text}\n"

    @property
    def answer(self) -> str:
        return str(self.multiplicand * self.multiplier + self.addend)


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How careless the student is. Every field is a probability."""

    slip: float = 0.18  # that a step of the working goes wrong
    no_box: float = 0.3  # that the answer is left without its \boxed{}

    def __post_init__(self) -> None:
        for name, value in (("slip", self.slip), ("no_box", self.no_box)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value}: a probability; choose a value from 0 to 1.")


FLAWLESS = Habits(slip=0.0, no_box=0.0)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Disjoint sets of problems, each in shuffled order."""

    pretrain: list[Problem]
    rl_train: list[Problem]
    heldout: list[Problem]


def make_splits(*, seed: int, num_rl_train: int, num_heldout: int) -> Splits:
    """Shuffle all problems and split them: first held-out, then RL training, then pretraining.

    Raises ValueError if nothing would be left for pretraining.
    """
    problems = [
        Problem(multiplicand=a, multiplier=b, addend=c)
        for a, b, c in itertools.product(MULTIPLICANDS, MULTIPLIERS, ADDENDS)
    ]
    num_reserved = num_rl_train + num_heldout
    if num_reserved >= len(problems):
        raise ValueError(
            f"num_rl_train + num_heldout = {num_reserved}: there are only {len(problems)} problems, "
            "and some must be left for pretraining; choose fewer."
        )
    random.Random(seed).shuffle(problems)
    return Splits(
        heldout=problems[:num_heldout],
        rl_train=problems[num_heldout:num_reserved],
        pretrain=problems[num_reserved:],
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One written step of the working, right or wrong: `left sign right = result`."""

    left: int
    sign: str
    right: int
    result: int

    @property
    def text(self) -> str:
        return f"{self.left}{self.sign}{self.right}={self.result}"


def correct_step(left: int, sign: str, right: int) -> Step:
    result = left * right if sign == "*" else left + right
    return Step(left=left, sign=sign, right=right, result=result)


def carried_columns(x: int, y: int) -> list[int]:
    """Return the place values (1, 10, ...) of the columns of x + y that carry: 222 + 58 -> [1]."""
    columns, place = [], 1
    while place <= max(x, y):
        if x % (10 * place) + y % (10 * place) >= 10 * place:
            columns.append(place)
        place *= 10
    return columns


def drop_carry(step: Step, rng: random.Random) -> Step:
    """Forget one carry: 222+58=270. The step must be a sum that carries."""
    place = rng.choice(carried_columns(step.left, step.right))
    return replace(step, result=step.result - 10 * place)


def miss_by_ten(step: Step, rng: random.Random) -> Step:
    """Be ten too high, or ten too low if that stays positive: 7*6=32."""
    offset = rng.choice((-10, 10)) if step.result > 10 else 10
    return replace(step, result=step.result + offset)


def misread_digit(step: Step, rng: random.Random) -> Step:
    """Copy the right operand with its last digit one off, and use that: 222+57=279."""
    last = step.right % 10
    misread = {0: 1, 9: 8}.get(last, last + rng.choice((-1, 1)))
    return correct_step(step.left, step.sign, step.right - last + misread)


def confuse_table(step: Step, rng: random.Random) -> Step:
    """Answer a product with its neighbour in the times table: 7*6=48 or 7*6=36."""
    return replace(step, result=step.result + rng.choice((-1, 1)) * step.right)


Slip = Callable[[Step, random.Random], Step]


def possible_slips(step: Step) -> list[Slip]:
    slips: list[Slip] = [miss_by_ten, misread_digit]
    if step.sign == "*" and step.left > 0:
        slips.append(confuse_table)
    if step.sign == "+" and carried_columns(step.left, step.right):
        slips.append(drop_carry)
    return slips


def solution(problem: Problem, habits: Habits, rng: random.Random) -> str:
    """Write the student's solution. Later steps use a wrong result of an earlier one."""
    steps: list[Step] = []

    def work_out(left: int, sign: str, right: int) -> int:
        step = correct_step(left, sign, right)
        if rng.random() < habits.slip:
            step = rng.choice(possible_slips(step))(step, rng)
        steps.append(step)
        return step.result

    ones = problem.multiplicand % 10
    tens_product = work_out(problem.multiplicand - ones, "*", problem.multiplier)
    ones_product = work_out(ones, "*", problem.multiplier)
    product = work_out(tens_product, "+", ones_product)
    total = work_out(product, "+", problem.addend)
    working = ",".join(step.text for step in steps)
    return working if rng.random() < habits.no_box else f"{working} \\boxed{{{total}}}"


def worked_solution(problem: Problem) -> str:
    """Write the solution without errors."""
    return solution(problem, FLAWLESS, random.Random(0))


Attempt = tuple[Problem, str]  # the problem and what the student wrote


def student_attempts(
    problems: list[Problem],
    *,
    habits: Habits,
    seed: int,
    num_attempts: int,
) -> Iterator[Attempt]:
    """Yield `num_attempts` pairs. Repeat `problems` as often as needed."""
    rng = random.Random(seed)
    for problem in itertools.islice(itertools.cycle(problems), num_attempts):
        yield problem, solution(problem, habits, rng)


def is_correct(problem: Problem, completion: str) -> bool:
    """Check that the last boxed expression equals the answer exactly."""
    boxed = BOXED.findall(completion)
    return bool(boxed) and boxed[-1] == problem.answer
