"""Read a model from a Hugging Face folder or a Megatron checkpoint, as whole Hugging Face tensors, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_rapo.checkpoints.folders import MODEL_FILES, CheckpointError
from megatron_rapo.checkpoints.tensors import METADATA, Reader
from megatron_rapo.convert.files import ConversionError
from megatron_rapo.convert.model_tensors import ModelTensor, model_tensors
from megatron_rapo.models import ModelShape, WeightReader, check_weights, read_shape
from megatron_rapo.models.parameter_map import EMBEDDING, OUTPUT, hf_shapes, merge
from megatron_rapo.models.stored_weights import DTYPES


class ModelSource(Protocol):
    """The model in a folder."""

    like: Path
    """The folder with its config.json and tokenizer."""
    model: ModelShape

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named Hugging Face tensors, in the order of the parameter map."""


def open_source(folder: Path, like: Path | None = None) -> ModelSource:
    """Open a Hugging Face folder or a Megatron checkpoint. Raises ConfigError, CheckpointError or ConversionError."""
    return MegatronSource(folder, like) if (folder / METADATA).exists() else HfSource(folder)


class HfSource:
    """A Hugging Face folder. Raises ConfigError if its model is not supported or its weights do not match."""

    def __init__(self, folder: Path) -> None:
        self.like, self.model = folder, read_shape(folder)
        self._shapes = hf_shapes(self.model)
        self._stored = check_weights(folder, self._shapes, tied=self.model.tied)
        self._reader = WeightReader(folder)

    @property
    def dtype(self) -> torch.dtype:
        """Return the narrowest dtype that holds every tensor without loss. A model's files may mix dtypes."""
        return reduce(torch.promote_types, {DTYPES[each.dtype] for each in self._stored.values()})

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        wanted = set(names)
        yield from ((name, self._reader.read(name, 0, 0, s[0])) for name, s in self._shapes.items() if name in wanted)


class MegatronSource:
    """A Megatron checkpoint. `like` is the model's Hugging Face folder, needed if the checkpoint has no copy of it.

    Raises CheckpointError if `folder` is no complete checkpoint of the model, ConversionError without config.json.
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
        _check_tensors(folder, self.reader, self._parameters)

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
        """Read the whole parameter, without extra vocabulary padding that the checkpoint may have."""
        if parameter.key_of_layer in self.reader.tensors:  # Megatron can write each layer separately too
            return self.reader.read(parameter.key_of_layer, [0] * len(parameter.shard.shape), parameter.shard.shape)
        chunk = parameter.chunk(self.dtype)
        return self.reader.read(chunk.key, chunk.offsets, chunk.sizes).view(parameter.shard.shape)


_MODEL = ("embedding.", "decoder.", "output_layer.")
"""Prefixes of the keys of a model's tensors in a checkpoint. Other tensors are the optimizer's."""
_MAX_PADDING = 128 * 64
"""Most rows of padding in a vocabulary: Megatron-LM pads to 128 times the tensor-parallel size."""


def _check_tensors(folder: Path, reader: Reader, parameters: Sequence[ModelTensor]) -> None:
    """Refuse a checkpoint that config.json does not describe: parts of it would be ignored. Raises CheckpointError."""
    expected: set[str] = set()
    for parameter in parameters:
        alone = parameter.key_of_layer in reader.tensors
        key, promised = (parameter.key_of_layer, parameter.shard.shape) if alone else (parameter.key, parameter.shape)
        expected.add(key)
        if key not in reader.tensors:
            raise CheckpointError(f"{folder}: tensor {key} is missing; it is not a checkpoint of this model.")
        found = tuple(reader.tensors[key].size)
        padding = found[0] - promised[0] if key in (EMBEDDING, OUTPUT) and found[1:] == promised[1:] else 0
        if found != promised and not 0 < padding < _MAX_PADDING:
            raise CheckpointError(
                f"{folder}: {key} has shape {list(found)}, but config.json promises {list(promised)}; name the folder "
                "of the same model with --like, or take another checkpoint."
            )
        if reader.dtype(key) not in DTYPES.values():
            raise CheckpointError(f"{folder}: {key} has number format {reader.dtype(key)}, which is not supported.")
    others = [key for key in reader.tensors if key.startswith(_MODEL) and key not in expected]
    if others:
        raise CheckpointError(
            f"{folder}: has {others[0]}, which config.json does not promise, and ignoring it would change the "
            "model; name the folder of the same model with --like, or take another checkpoint."
        )
