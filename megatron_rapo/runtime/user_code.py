"""Load and check the user's own code, which a setting names as MODULE:NAME or FILE.py:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_rapo.errors import InputError


class UserCodeError(InputError):
    """The user's code cannot be used, or returned a value that is not allowed."""


def load_object(reference: str, field: str) -> Any:
    """Import and return the object that `reference` names.

    Raises UserCodeError. Its message starts with `field`, such as "section.field='value'".
    """
    where, _, name = reference.rpartition(":")

    def load() -> Any:
        module = _module_of_file(Path(where), field) if where.endswith(".py") else importlib.import_module(where)
        return _attribute(module, name, field)

    return guarded(load, field, "does not load")


def load_function(reference: str, field: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """Return the function that `reference` names. Raises UserCodeError if it cannot be called with `parameters`."""
    function = load_object(reference, field)
    check_function(function, field, parameters)
    return function


def guarded(call: Callable[[], Any], field: str, failure: str) -> Any:
    """Return `call()`. Turn any exception of the user's code (also SystemExit) into a UserCodeError."""
    try:
        return call()
    except (UserCodeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserCodeError(f"{field}: {failure} ({type(error).__name__}: {error}); fix it.") from error


def check_function(function: object, field: str, parameters: Sequence[str]) -> None:
    """Raise UserCodeError unless `function` is a synchronous function that can be called with `parameters`."""
    if not callable(function):
        raise UserCodeError(f"{field}: is {function!r}, which cannot be called; name a function.")
    if inspect.iscoroutinefunction(function):
        raise UserCodeError(f"{field}: is asynchronous, but nothing would await it; write a plain function.")
    try:
        inspect.signature(function).bind(*parameters)
    except (TypeError, ValueError) as error:
        raise UserCodeError(
            f"{field}: cannot be called with ({', '.join(parameters)}): {error}; give it these parameters."
        ) from None


def source_of(reference: str) -> Path | None:
    """Return the Python file of the module in `reference`, or None if there is none (a C extension, no module)."""
    where = reference.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where)
    spec = importlib.util.find_spec(where)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _module_of_file(path: Path, field: str) -> ModuleType:
    if not path.is_file():
        raise UserCodeError(f"{field}: no such file {path} (from {Path.cwd()}); check the path.")
    name = f"{__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, f"{path} ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look here
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, name: str, field: str) -> Any:
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UserCodeError(f"{field}: has no {name!r}; use one of its functions: {', '.join(own) or 'none'}.")
    return getattr(module, name)
