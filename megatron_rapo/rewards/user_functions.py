"""Load the user's own reward functions and check their values against the declared range.

A function gets a problem, one of its completions and the verifier's verdict (types.py), and returns a number:

    def brevity(problem: Problem, completion: Completion, verdict: Verdict) -> float:
        return -min(1.0, len(completion.token_ids) / 1000)

It runs in the training process without a time limit, and may import modules and keep state. An exception (also
SystemExit) ends the run with a traceback. It is called once per completion, on one process, and all processes use the
value. So it may draw random numbers or ask a server, and the processes still agree.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from megatron_rapo.runtime.user_code import UserCodeError, check_function, guarded, load_object
from megatron_rapo.types import Completion, Problem, Verdict

if TYPE_CHECKING:  # the verifier processes do not import pydantic
    from megatron_rapo.config import FunctionConfig

ENTRY_POINTS = "megatron_rapo.rewards"
"""Entry-point group in which an installed package names its reward functions."""
PARAMETERS = ("problem", "completion", "verdict")


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A loaded function with its settings."""

    settings: FunctionConfig
    function: Callable[[Problem, Completion, Verdict], object]

    def __call__(self, problem: Problem, completion: Completion, verdict: Verdict) -> float:
        """Return the function's value times its weight.

        Raises UserCodeError for a value that is not a number in the declared range, and RuntimeError if the function
        raises.
        """
        who = f"{self.settings.name} ({self.settings.function})"
        try:
            value = self.function(problem, completion, verdict)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit(0) would end the run as if it were finished
            raise RuntimeError(
                f"reward.functions: {who} failed on problem {problem.id!r}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(value, Real):
            raise UserCodeError(
                f"reward.functions: {who} returned {value!r} for problem {problem.id!r}, which is not a number; "
                "return a float."
            )
        lowest, highest = self.settings.range
        if not lowest <= float(value) <= highest:
            raise UserCodeError(
                f"reward.functions: {who} returned {float(value)} for problem {problem.id!r}, outside its declared "
                f"range [{lowest}, {highest}]; fix the function, or declare the range that it really has."
            )
        return self.settings.weight * float(value)


def load_functions(settings: Sequence[FunctionConfig]) -> tuple[RewardFunction, ...]:
    """Load the functions that `settings` name. Raises UserCodeError."""
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
            f"{field}: no installed package has this entry point in the group {ENTRY_POINTS} (found: {known}); "
            "write FILE.py:FUNCTION or MODULE:FUNCTION, or install the package."
        )
    return found[name].load()
