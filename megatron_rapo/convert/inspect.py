"""Summarise the content of a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_rapo.checkpoints import fp8_state
from megatron_rapo.convert.files import Progress
from megatron_rapo.convert.source import MegatronSource, ModelSource, open_source
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.reshard.digest import digest


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of one checkpoint."""

    kind: str
    facts: dict[str, str]
    tensors: list[TensorSummary]


@dataclass(frozen=True)
class TensorSummary:
    """Summary of one tensor of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: int  # as 64 bits (reshard/digest.py)


def summarise(folder: Path, like: Path | None, progress: Progress) -> Summary:
    """Summarise the model, reading every tensor once. Raises ConfigError, CheckpointError or ConversionError."""
    source = open_source(folder, like)
    shapes = hf_shapes(source.model)
    tensors = []
    for name, tensor in source.tensors(shapes):
        tensors.append(TensorSummary(name, shapes[name], tensor.dtype, int(digest(tensor)) % 2**64))
        progress(tensor.nbytes)
    numel = sum(math.prod(tensor.shape) for tensor in tensors)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    facts = {
        "architecture": source.model.architecture,
        "layers": str(source.model.num_layers),
        "parameters": f"{numel:,}",
        "dtype": ", ".join(f"{dtype} ({count} tensors)" for dtype, count in dtypes.items()),
        "bytes of weights": f"{sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors):,}",
        "bytes on disk": f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()):,}",
        **_particulars(source),
    }
    return Summary(
        kind="Megatron" if isinstance(source, MegatronSource) else "Hugging Face", facts=facts, tensors=tensors
    )


def total_bytes(source: ModelSource) -> int:
    """Return the size of the model's weights in bytes."""
    return sum(math.prod(shape) for shape in hf_shapes(source.model).values()) * source.dtype.itemsize


def _particulars(source: ModelSource) -> dict[str, str]:
    """Return the facts that only a Megatron checkpoint has."""
    if not isinstance(source, MegatronSource):
        return {}
    reader, trainer = source.reader, source.reader.common.get("trainer", {})
    layout = " x ".join(f"{name} {size}" for name, size in reader.common.get("layout", {}).items())
    return ({"step": str(trainer["step"])} if "step" in trainer else {}) | {
        "chunks": f"{sum(len(tensor.chunks) for tensor in reader.tensors.values()):,}",
        "layout": layout or "of a run (any)",
        "other tensors": f"{sum(key.startswith('optimizer.') for key in reader.tensors):,} of the optimizer",
        "FP8 state": fp8_state.describe(reader.read_object(key) for key in reader.objects if fp8_state.OBJECT in key),
    }
