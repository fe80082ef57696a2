"""The model in a folder of either kind, as whole Hugging Face tensors, each when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_rapo.checkpoints import MODEL_FILES
from megatron_rapo.checkpoints.tensors import METADATA, Reader
from megatron_rapo.convert.files import ConversionError
from megatron_rapo.convert.model_tensors import ModelTensor, model_tensors
from megatron_rapo.hf import ModelShape, WeightReader, read_shape
from megatron_rapo.reshard.layout import hf_shapes, merge


class ModelSource(Protocol):
    """The model in a folder."""

    like: Path
    """The folder with its config.json and tokenizer."""
    model: ModelShape

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named Hugging Face tensors, in the map's order."""


def open_source(folder: Path, like: Path | None = None) -> ModelSource:
    """A Hugging Face folder or a Megatron checkpoint. Raises ConfigError, CheckpointError or ConversionError."""
    return MegatronSource(folder, like) if (folder / METADATA).exists() else HfSource(folder)


class HfSource:
    """A Hugging Face folder. Raises ConfigError where it is none of a supported model."""

    def __init__(self, folder: Path) -> None:
        self.like, self.model = folder, read_shape(folder)
        self._reader, self._shapes = WeightReader(folder), hf_shapes(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self._reader.read(next(iter(self._shapes)), 0, 0, 1).dtype

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        wanted = set(names)
        yield from ((name, self._reader.read(name, 0, 0, s[0])) for name, s in self._shapes.items() if name in wanted)


class MegatronSource:
    """A Megatron checkpoint; `like` is the model's Hugging Face folder where the checkpoint has no copy of it.

    Raises CheckpointError where `folder` is no whole checkpoint, ConversionError where nothing says what model it is.
    """

    def __init__(self, folder: Path, like: Path | None = None) -> None:
        self.reader, self.like = Reader(folder), like or folder / MODEL_FILES
        if not self.like.is_dir():
            raise ConversionError(
                f"{folder}: has no {MODEL_FILES}/ with the model's config.json and tokenizer; name a Hugging Face "
                "folder that has them with --like."
            )
        self.model = read_shape(self.like)
        self._parameters = model_tensors(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.reader.dtype(self._parameters[0].key)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        wanted = set(names)
        for parameter in self._parameters:
            if not wanted.isdisjoint(piece.hf_name for piece in parameter.shard.pieces):
                merged = merge([self._read(parameter)], [parameter.shard])
                yield from ((name, tensor) for name, tensor in merged if name in wanted)

    def _read(self, parameter: ModelTensor) -> Tensor:
        """All of it but the vocabulary's padding, of which a checkpoint may have more."""
        of_layer = parameter.key.replace("layers.", f"layers.{parameter.layer}.", 1)
        if of_layer in self.reader.tensors:  # Megatron can write each layer's by itself too
            return self.reader.read(of_layer, [0] * len(parameter.shard.shape), parameter.shard.shape)
        chunk = parameter.chunk(self.dtype)
        return self.reader.read(chunk.key, chunk.offsets, chunk.sizes).view(parameter.shard.shape)
