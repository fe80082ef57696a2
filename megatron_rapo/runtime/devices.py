"""Resolve which layers and number format a run's trainer uses on this machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from megatron_rapo.config import Config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Number formats by their names in precision.dtype."""


@dataclass(frozen=True)
class Backend:
    """Layers and number format of the trainer. The code that builds a model resolves them once and passes them on."""

    layers: str  # "torch" or "transformer_engine"
    dtype: torch.dtype  # of the weights

    @classmethod
    def resolve(cls, config: Config) -> Backend:
        """Return the backend of `config`. model.layers=auto means Transformer Engine if available and in bfloat16."""
        layers = config.model.layers
        if layers == "auto":
            usable = config.precision.dtype == "bfloat16" and has_transformer_engine()
            layers = "transformer_engine" if usable else "torch"
        return cls(layers, DTYPES[config.precision.dtype])

    @property
    def transformer_engine(self) -> bool:
        """Return whether the layers are Transformer Engine's."""
        return self.layers == "transformer_engine"


def has_transformer_engine() -> bool:
    """Return whether there is a GPU and Transformer Engine is installed."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def itemsize(config: Config) -> int:
    """Return the bytes of a number in precision.dtype."""
    return DTYPES[config.precision.dtype].itemsize
