"""Reward functions of the user's own: loaded before anything is built, and held to the range that is declared.

A function is called with a problem, a completion of it and the verifier's verdict (types.py) and gives a number:

    def brevity(problem: Problem, completion: Completion, verdict: Verdict) -> float:
        return -min(1.0, len(completion.token_ids) / 1000)

It runs in the training process: it may import and keep what it likes, what it raises (SystemExit too) ends the run
with its traceback, and nobody cuts it short. Each completion is shown to it once, on one of the processes, and all
train on what it said there; so it may draw random numbers or ask a server without the processes falling out of step.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from megatron_rapo.errors import InputError
from megatron_rapo.types import Completion, Problem, Verdict

if TYPE_CHECKING:  # pydantic has no place in the verifier processes
    from megatron_rapo.config import FunctionConfig

ENTRY_POINTS = "megatron_rapo.rewards"
"""Group in which an installed package names its reward functions."""
PARAMETERS = ("problem", "completion", "verdict")


class RewardError(InputError):
    """A reward function that cannot be used, or that gave what it must not."""


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A loaded function with its settings."""

    settings: FunctionConfig
    function: Callable[[Problem, Completion, Verdict], object]

    def __call__(self, problem: Problem, completion: Completion, verdict: Verdict) -> float:
        """Return the weighted reward. Raises RewardError if it is out of range, RuntimeError if the function fails."""
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
            raise RewardError(
                f"reward.functions: {who} gave {value!r} for problem {problem.id!r}, which is not a number; "
                "have it return a float."
            )
        lowest, highest = self.settings.range
        if not lowest <= float(value) <= highest:
            raise RewardError(
                f"reward.functions: {who} gave {float(value)} for problem {problem.id!r}, outside its declared range "
                f"[{lowest}, {highest}]; mend the function, or declare the range that it has."
            )
        return self.settings.weight * float(value)


def load_functions(settings: Sequence[FunctionConfig]) -> tuple[RewardFunction, ...]:
    """Load the functions that `settings` name. Raises RewardError."""
    return tuple(
        RewardFunction(settings=each, function=_load(each.function, f"reward.functions.{index}.function"))
        for index, each in enumerate(settings)
    )


def _load(reference: str, field: str) -> Callable[[Problem, Completion, Verdict], object]:
    field = f"{field}={reference!r}"
    where, colon, name = reference.rpartition(":")
    try:
        if not colon:
            function = _entry_point(reference, field)
        else:
            module = _module_of_file(Path(where), field) if where.endswith(".py") else importlib.import_module(where)
            function = _attribute(module, name, field)
    except (RewardError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's code does when it is imported, sys.exit(0) too
        raise RewardError(f"{field}: does not load ({type(error).__name__}: {error}); mend it.") from error
    if not callable(function):
        raise RewardError(f"{field}: is {function!r}, which cannot be called; name a function.")
    _check_signature(function, field)
    return function


def _entry_point(name: str, field: str) -> Any:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise RewardError(
            f"{field}: no installed package has such an entry point in the group {ENTRY_POINTS} (there: {known}); "
            "write FILE.py:FUNCTION or MODULE:FUNCTION, or install the package."
        )
    return found[name].load()


def _module_of_file(path: Path, field: str) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"{field}: no such file {path} (from {Path.cwd()}); check the path.")
    name = f"{__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, f"{path} ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, name: str, field: str) -> Any:
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise RewardError(f"{field}: there is no {name!r}; functions there: {', '.join(own) or 'none'}.")
    return getattr(module, name)


def _check_signature(function: Callable[..., object], field: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise RewardError(f"{field}: is asynchronous, and nothing would wait for it; write a plain function.")
    try:
        signature = inspect.signature(function)
        signature.bind(*PARAMETERS)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"{field}: cannot be called with ({', '.join(PARAMETERS)}): {error}; give it these three parameters."
        ) from None
