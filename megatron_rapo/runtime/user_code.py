"""Load and check code of the user's own, which a setting names as MODULE:NAME or FILE.py:NAME."""

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
    """User code that cannot be used, or that returned what it must not."""


def load_object(reference: str, field: str) -> Any:
    """Return what `reference` names. Raises UserCodeError; `field` ("section.field='value'") opens the message."""
    where, _, name = reference.rpartition(":")

    def load() -> Any:
        module = _module_of_file(Path(where), field) if where.endswith(".py") else importlib.import_module(where)
        return _attribute(module, name, field)

    return guarded(load, field, "does not load")


def load_function(reference: str, field: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """Return the function that `reference` names, callable with `parameters`. Raises UserCodeError."""
    function = load_object(reference, field)
    check_function(function, field, parameters)
    return function


def guarded(call: Callable[[], Any], field: str, failure: str) -> Any:
    """Return `call()`; whatever the user's code raises, SystemExit too, becomes a UserCodeError."""
    try:
        return call()
    except (UserCodeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserCodeError(f"{field}: {failure} ({type(error).__name__}: {error}); mend it.") from error


def check_function(function: object, field: str, parameters: Sequence[str]) -> None:
    """Refuse what is no plain function of `parameters`. Raises UserCodeError."""
    if not callable(function):
        raise UserCodeError(f"{field}: is {function!r}, which cannot be called; name a function.")
    if inspect.iscoroutinefunction(function):
        raise UserCodeError(f"{field}: is asynchronous, and nothing would wait for it; write a plain function.")
    try:
        inspect.signature(function).bind(*parameters)
    except (TypeError, ValueError) as error:
        raise UserCodeError(
            f"{field}: cannot be called with ({', '.join(parameters)}): {error}; give it these parameters."
        ) from None


def source_of(reference: str) -> Path | None:
    """Return the Python file that `reference` is defined in; None where it is not Python or not there."""
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
    sys.modules[name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, name: str, field: str) -> Any:
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UserCodeError(f"{field}: there is no {name!r}; functions there: {', '.join(own) or 'none'}.")
    return getattr(module, name)
