"""The writers that `monitor.writers` names: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.monitor.writer import Writer
from megatron_rapo.runtime.run_folder import RunFolder

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Of each writer: the package that it needs, by the name of its import."""


def check_writers(names: Sequence[str]) -> None:
    """Refuse one whose package is not installed. Raises InputError."""
    for name in names:
        spec = importlib.util.find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:  # a folder of that name, which wandb for one leaves, is no package
            raise InputError(
                f"monitor.writers={list(names)}: the package {PACKAGES[name]} is not installed; "
                f"pip install {PACKAGES[name]}, or leave {name} out."
            )


def open_writer(name: str, folder: Path, settings: Mapping[str, Any], *, first_step: int) -> Writer:
    """The writer `name` for the run in `folder` with those settings, whose next step is `first_step`."""
    if name == "tensorboard":  # 0.2 s of imports, only where it is wanted
        from megatron_rapo.monitor.tensorboard_writer import EventFile

        return EventFile(RunFolder(folder).tensorboard, first_step=first_step)
    if name == "wandb":
        from megatron_rapo.monitor.wandb_writer import WandbWriter

        return WandbWriter(folder, settings)
    from megatron_rapo.monitor.mlflow_writer import MlflowWriter

    return MlflowWriter(folder, settings)
