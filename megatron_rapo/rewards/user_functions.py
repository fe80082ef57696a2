"""Reward functions of the user's own: loaded before anything is built, and held to the range that is declared.

A function is called with a problem, a completion of it and the verifier's verdict (types.py) and gives a number:

    def brevity(problem: Problem, completion: Completion, verdict: Verdict) -> float:
        return -min(1.0, len(completion.token_ids) / 1000)

It runs in the training process: it may import and keep what it likes, what it raises (SystemExit too) ends the run
with its traceback, and nobody cuts it short. Each completion is shown to it once, on one of the processes, and all
train on what it said there; so it may draw random numbers or ask a server without the processes falling out of step.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from megatron_rapo.runtime.user_code import UserCodeError, check_function, guarded, load_object
from megatron_rapo.types import Completion, Problem, Verdict

if TYPE_CHECKING:  # pydantic has no place in the verifier processes
    from megatron_rapo.config import FunctionConfig

ENTRY_POINTS = "megatron_rapo.rewards"
"""Group in which an installed package names its reward functions."""
PARAMETERS = ("problem", "completion", "verdict")


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A loaded function with its settings."""

    settings: FunctionConfig
    function: Callable[[Problem, Completion, Verdict], object]

    def __call__(self, problem: Problem, completion: Completion, verdict: Verdict) -> float:
        """What it gives, by its weight. Raises UserCodeError outside its range, RuntimeError from what it raises."""
        who = f"{self.settings.name} ({self.settings.function})"
        try:
            value = self.function(problem, completion, verdict)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit(0) too would end the run, as if it were finished
            raise RuntimeError(
                f"reward.functions: {who} failed on problem {problem.id!r}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(value, Real):
            raise UserCodeError(
                f"reward.functions: {who} gave {value!r} for problem {problem.id!r}, which is not a number; "
                "have it return a float."
            )
        lowest, highest = self.settings.range
        if not lowest <= float(value) <= highest:
            raise UserCodeError(
                f"reward.functions: {who} gave {float(value)} for problem {problem.id!r}, outside its declared range "
                f"[{lowest}, {highest}]; mend the function, or declare the range that it has."
            )
        return self.settings.weight * float(value)


def load_functions(settings: Sequence[FunctionConfig]) -> tuple[RewardFunction, ...]:
    """The functions that `settings` name. Raises UserCodeError."""
    return tuple(
        RewardFunction(settings=each, function=_load(each.function, f"reward.functions.{index}.function"))
        for index, each in enumerate(settings)
    )


def _load(reference: str, field: str) -> Callable[[Problem, Completion, Verdict], object]:
    field = f"{field}={reference!r}"
    if ":" in reference:
        function = load_object(reference, field)
    else:
        function = guarded(lambda: _entry_point(reference, field), field, "does not load")
    check_function(function, field, PARAMETERS)
    return function


def _entry_point(name: str, field: str) -> Any:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise UserCodeError(
            f"{field}: no installed package has such an entry point in the group {ENTRY_POINTS} (there: {known}); "
            "write FILE.py:FUNCTION or MODULE:FUNCTION, or install the package."
        )
    return found[name].load()
