"""The model of `run_file`, and its run with other settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_rapo.config import Config
from megatron_rapo.config.file import load_config
from megatron_rapo.models import ModelShape, read_shape


@pytest.fixture(scope="session")
def model(run_file: Path) -> ModelShape:
    return read_shape(run_file.parent)


@pytest.fixture(scope="session")
def configured(run_file: Path) -> Callable[..., Config]:
    """Return configured("section.field=value", ...), which gives the run with other settings."""
    return lambda *settings: load_config(run_file, settings)
