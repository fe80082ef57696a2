"""Load a Megatron checkpoint without running code from its files."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import load
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies import torch as megatron_torch
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from megatron_rapo.checkpoints import fp8_state
from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.checkpoints.restricted_pickle import (
    COMMON,
    METADATA,
    check_backend,
    load_object,
    read_common,
    read_metadata,
)
from megatron_rapo.runtime.patching import patched


def load_safely(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Load as `dist_checkpointing.load` does. Collective. Raises CheckpointError for anything but plain data."""
    check_backend(folder)
    metadata = read_metadata(folder / METADATA)
    try:
        with _own_readers(metadata):
            strategy = get_default_load_sharded_strategy(str(folder))
            loaded: dict[str, Any] = load(wanted, str(folder), strategy, _Common())
    except CheckpointException as error:  # has the failures of all ranks; the same on every rank
        for problem, _ in error.failures.values():
            if isinstance(problem, CheckpointError):
                raise CheckpointError(f"{folder}: {problem}") from None
        raise
    return loaded


def _own_readers(metadata: Metadata) -> AbstractContextManager[None]:
    """Make Megatron use this `metadata` and this module's planner.

    megatron-core 0.16.1 and torch 2.13 unpickle `.metadata` and the objects in `.distcp` files without a check, and
    Megatron has no setting for another reader. Delete this once Megatron has one or reads with an allow-list.
    """
    reader = functools.partial(_Reader, metadata)
    return patched(megatron_torch, CachedMetadataFileSystemReader=reader, MCoreLoadPlanner=_Planner)


class _Reader(FileSystemReader):
    """Read the files of a checkpoint whose `.metadata` is already read."""

    def __init__(self, metadata: Metadata, path: str | Path) -> None:
        super().__init__(path)
        self._metadata = metadata
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return self._metadata


class _Planner(megatron_torch.MCoreLoadPlanner):
    """Read objects as torch.load(weights_only=True) does."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        name, content = read_item.dest_index.fqn, value.getvalue()
        if fp8_state.OBJECT in name:
            _check_fp8_state(name, content)
        found = load_object(content, name)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], found)
        else:
            self.state_dict[name] = found


def _check_fp8_state(name: str, content: bytes) -> None:
    try:
        fp8_state.read_fp8_state(content)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; Transformer Engine would run it: take another checkpoint.") from None


class _Common(TorchCommonLoadStrategy):
    """Read `common.pt` with an allow-list of classes."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return read_common(Path(checkpoint_dir) / COMMON)
