"""Read the pickled parts of a checkpoint without running code that they name.

torch and Megatron keep everything but numbers as pickles, and a pickle can call any function. This module allows only
the classes that such a file needs and raises CheckpointError for any other. A manifest does not protect: whoever
changes a file can also rewrite the manifest.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import pickle
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint import planner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.runtime.safe_json import JSONError, read_json

METADATA, COMMON, BACKEND = ".metadata", "common.pt", "metadata.json"
_PLANNER_CLASSES = ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
_METADATA_CLASSES = (
    *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
    *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
)
_OLD_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_MEGATRON_CLASSES = {  # enumerations and settings that Megatron-LM keeps in common.pt besides plain values
    "megatron.core.enums.ModelType",
    "megatron.core.optimizer.optimizer_config.OptimizerConfig",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.CudaGraphScope",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "signal.Signals",
}
_NUMPY = [np.ndarray, np.dtype, np.dtypes.UInt32DType, np.dtypes.Int64DType, np.dtypes.Float64DType]


def check_backend(folder: Path) -> None:
    """Refuse a checkpoint whose `metadata.json` names another format. Raises CheckpointError or OSError."""
    path = folder / BACKEND
    try:
        found = read_json(path)
    except JSONError as error:
        _refuse(path, error)
    format_of_megatron: dict[str, Any] = {"sharded_backend": "torch_dist", "common_backend": "torch"}
    format_of_megatron |= {f"{backend}_version": 1 for backend in format_of_megatron}
    if not isinstance(found, dict) or format_of_megatron | found != format_of_megatron:
        _refuse(path, ValueError(f"it is not {json.dumps(format_of_megatron)}, Megatron's format torch_dist"))


def read_metadata(path: Path) -> Metadata:
    """Read a checkpoint's `.metadata`: its tensors and where they are. Raises CheckpointError or OSError."""
    with open(path, "rb") as stream:
        try:
            found = _MetadataUnpickler(stream).load()
            _check(found)
        except OSError:
            raise
        except Exception as error:  # arbitrary bytes can raise anything
            _refuse(path, error)
    assert isinstance(found, Metadata)
    return found


def read_common(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `common.pt`: the state that all processes share. Raises CheckpointError or OSError."""
    found = _load(lambda: path.open("rb"), path)
    if not isinstance(found, dict):
        _refuse(path, TypeError(f"it holds a {type(found).__name__}"))
    return found


def load_object(content: bytes | memoryview, name: str) -> Any:
    """Read an object of a `.distcp` file. `name` stands in errors. Raises CheckpointError."""
    return _load(lambda: BytesIO(content), name)


def _load(opened: Callable[[], Any], name: Path | str) -> Any:
    """Read a file that torch.save wrote. Import classes of Megatron-LM only if the file needs them."""
    reconstruct: Any = np.empty(0).__reduce__()[0]
    try:
        with opened() as stream:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
        needed = [_imported(each) for each in unknown if each in _MEGATRON_CLASSES]
        paths = [pathlib.PosixPath, BytesIO]
        with opened() as stream, torch.serialization.safe_globals([*_NUMPY, reconstruct, *paths, *needed]):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # arbitrary bytes can raise anything
        _refuse(name, error)


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class _MetadataUnpickler(pickle._Unpickler):
    """Load only the classes of a `.metadata` and functions that make plain values.

    Derived from Python's own unpickler: the one in C would let a file set attributes of classes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if module == torch_metadata.__name__ and name in _METADATA_CLASSES:
            return getattr(torch_metadata, name)
        if module == planner.__name__ and name in _PLANNER_CLASSES:
            return getattr(planner, name)
        known: dict[tuple[str, str], Any] = {
            ("torch", "Size"): torch.Size,
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
            ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
            ("collections", "OrderedDict"): OrderedDict,
            ("pathlib", "PosixPath"): _path,
            ("builtins", "getattr"): _member,  # Python 3.11 pickles enum members this way
            ("builtins", "set"): set,
            (_OLD_MEGATRON, "MCoreMetadata"): Metadata,
            (_OLD_MEGATRON, "MCoreSavePlan"): type("MCoreSavePlan", (), {}),
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in it")

    def load_build(self) -> None:
        target = self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(target, type) or callable(target):
            raise pickle.UnpicklingError("it would change a class")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


def _path(*parts: str) -> str:
    return "/".join(parts)


def _member(owner: object, name: str) -> Any:
    for enumeration in (_MEM_FORMAT_ENCODING, planner.WriteItemType):
        if owner is enumeration:
            return enumeration[name]
    raise pickle.UnpicklingError("it would read an attribute")


def _check(found: Any) -> None:
    """Refuse an object that is no valid Metadata, or that names a file outside its folder."""
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise TypeError("it is not the metadata of a checkpoint")
    for key, value in found.state_dict_metadata.items():
        if not isinstance(key, str) or not isinstance(value, (TensorStorageMetadata, BytesStorageMetadata)):
            raise TypeError(f"{key!r} is not described as a tensor or an object")
        if isinstance(value, TensorStorageMetadata):
            if not isinstance(value.properties.dtype, torch.dtype) or not isinstance(value.size, torch.Size):
                raise TypeError(f"{key}: it has no shape or dtype")
            for chunk in value.chunks:
                if not len(chunk.offsets) == len(chunk.sizes) == len(value.size):
                    raise ValueError(f"{key}: one of its chunks has another number of axes")
    for index, place in found.storage_data.items():
        if not isinstance(index, MetadataIndex) or not isinstance(place, _StorageInfo):
            raise TypeError(f"{index!r} is not a place in a file")
        name = place.relative_path
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise ValueError(f"{name!r} is not a file in this folder")
        start, length = place.offset, place.length
        if not (isinstance(start, int) and isinstance(length, int) and min(start, length) >= 0):
            raise ValueError(f"{name}: start {start!r}, length {length!r} is no range of bytes")


def _refuse(name: Path | str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise CheckpointError(
        f"{name}: cannot be read safely ({reason}); it is damaged or holds code, which is never run: take another "
        "checkpoint."
    ) from None
