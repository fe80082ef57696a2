"""Convert a Megatron checkpoint to a Hugging Face folder, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_rapo.convert.files import Progress, make_folder, state_of
from megatron_rapo.convert.source import MegatronSource
from megatron_rapo.models.hf_weights import FileWriter, copy_model_files, label_dtype, split_into_files, write_index
from megatron_rapo.models.parameter_map import hf_shapes


@dataclass(frozen=True)
class WeightsFile:
    """One safetensors file of the folder."""

    source: Path
    like: Path
    name: str
    tensors: tuple[str, ...]
    dtype: torch.dtype
    nbytes: int

    def make(self, path: Path, progress: Progress) -> None:
        weights = MegatronSource(self.source, self.like)
        shapes = hf_shapes(weights.model)
        with FileWriter(path, {name: shapes[name] for name in self.tensors}, self.dtype) as writer:
            for name, tensor in weights.tensors(self.tensors):
                writer.write(name, tensor)
                progress(tensor.numel() * self.dtype.itemsize)
            writer.finish()


def megatron_to_hf(
    source: Path,
    target: Path,
    *,
    like: Path | None,
    dtype: torch.dtype | None,
    max_shard_size: str,
    processes: int,
    progress: Progress,
) -> None:
    """Write the Hugging Face folder `target`, in the checkpoint's dtype unless another is given.

    Raises CheckpointError if `source` is no complete checkpoint of the model, ConversionError without config.json.
    """
    weights = MegatronSource(source, like)
    dtype = dtype or weights.dtype
    shapes = hf_shapes(weights.model)
    split = split_into_files(shapes, dtype, max_shard_size)
    files = []
    for name, tensors in split.filename_to_tensors.items():
        nbytes = sum(math.prod(shapes[each]) for each in tensors) * dtype.itemsize
        files.append(WeightsFile(source, weights.like, name, tuple(tensors), dtype, nbytes))

    def finish(folder: Path, _: Mapping[str, Any]) -> None:
        write_index(folder, split)
        copy_model_files(weights.like, folder)
        label_dtype(folder / "config.json", dtype)

    recipe = {"source": state_of(source), "dtype": str(dtype), "max_shard_size": max_shard_size}
    make_folder(target, files, finish, recipe=recipe, processes=processes, progress=progress)
