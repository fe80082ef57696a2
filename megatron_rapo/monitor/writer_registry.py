"""Open the writers that `monitor.writers` names: TensorBoard, Weights & Biases, MLflow, and the user's own."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rapo import builtin_names
from megatron_rapo.builtin_names import is_reference
from megatron_rapo.errors import InputError
from megatron_rapo.monitor.writer_interface import Writer
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.runtime.user_code import UserCodeError, check_function, load_function

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Import name of the package that each writer needs."""
MakeWriter = Callable[[Path, Mapping[str, Any], int], Writer]
"""Opens a writer, given the run's folder, its settings and its next step."""


def _tensorboard(folder: Path, settings: Mapping[str, Any], first_step: int) -> Writer:
    from megatron_rapo.monitor.tensorboard_writer import EventFile  # takes 0.2 s, so import it only if needed

    return EventFile(RunFolder(folder).tensorboard, first_step=first_step)


def _wandb(folder: Path, settings: Mapping[str, Any], first_step: int) -> Writer:
    from megatron_rapo.monitor.wandb_writer import WandbWriter

    return WandbWriter(folder, settings)


def _mlflow(folder: Path, settings: Mapping[str, Any], first_step: int) -> Writer:
    from megatron_rapo.monitor.mlflow_writer import MlflowWriter

    return MlflowWriter(folder, settings)


WRITERS: dict[str, MakeWriter] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
assert tuple(WRITERS) == tuple(PACKAGES) == builtin_names.WRITERS, "megatron_rapo/builtin_names.py lists other writers"


def check_writers(names: Sequence[str]) -> None:
    """Raise InputError for an unknown writer, or one whose package is not installed."""
    for name in names:
        _maker(name)
        if name not in WRITERS:
            continue
        spec = importlib.util.find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:  # a mere folder with this name, such as wandb creates, has no origin
            raise InputError(
                f"monitor.writers={list(names)}: the package {PACKAGES[name]} is not installed; "
                f"pip install {PACKAGES[name]}, or leave {name} out."
            )


def open_writer(name: str, folder: Path, settings: Mapping[str, Any], *, first_step: int) -> Writer:
    """Open the writer `name` for the run in `folder`, whose next step is `first_step`.

    Raises InputError for an unknown writer.
    """
    writer = _maker(name)(folder, settings, first_step)
    if name not in WRITERS:
        _check_methods(writer, name)
    return writer


def _maker(name: str) -> MakeWriter:
    """Return the function or class that opens the writer `name`. Raises InputError."""
    if name in WRITERS:
        return WRITERS[name]
    if not is_reference(name):
        raise InputError(
            f"monitor.writers: {name!r}: no such writer; use {', '.join(WRITERS)}, or your own as MODULE:NAME or "
            "FILE.py:NAME (docs/extending.md)."
        )
    make = load_function(name, f"monitor.writers={name!r}", ("folder", "settings", "first_step"))
    if inspect.isclass(make):
        _check_methods(make, name, "self")
    return make


def _check_methods(writer: object, name: str, *first: str) -> None:
    """Raise UserCodeError for a class or an object without the methods of a Writer."""
    methods = {"write": ("step", "scalars", "samples", "histograms"), "close": ()}
    for method, parameters in methods.items():
        if not hasattr(writer, method):
            raise UserCodeError(f"monitor.writers={name!r}: has no method {method!r}; give it write and close.")
        check_function(getattr(writer, method), f"monitor.writers={name!r}: {method}", (*first, *parameters))
