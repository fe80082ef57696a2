"""Read the weights of a Hugging Face folder slice by slice, and write them tensor by tensor. Never hold all of them."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from torch import Tensor

from megatron_rapo.config import ConfigError
from megatron_rapo.models.stored_weights import DTYPES, INDEX, open_file, read_headers
from megatron_rapo.runtime.atomic_write import NewFile, partial_of, put_in_place

MODEL_FILES = ("config.json", "generation_config.json", "*token*", "vocab.*", "merges.txt", "*.jinja", "*.model")
"""The files of a model besides its weights."""
MAX_SHARD_SIZE = "5GB"
MAPPED_BYTES = 2**28


class WeightReader:
    """Reads slices of a folder's tensors without loading the rest.

    Pages read from an open file count as memory of this process. So the file is opened again every MAPPED_BYTES.
    Raises ConfigError as `read_headers` does. Does not check that the weights fit config.json (`check_weights` does).
    """

    def __init__(self, folder: Path) -> None:
        self._stored = read_headers(folder)
        self._folder = folder
        self._name, self._mapped = "", 0  # the open file's name, and the bytes read from it
        self._handle: Any = None

    @property
    def names(self) -> set[str]:
        """Return the names of all tensors in the folder."""
        return set(self._stored)

    def read(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Return rows (axis 0) or columns (axis 1) start to stop of a tensor, memory-mapped, in the folder's dtype."""
        if name not in self._stored:
            raise ConfigError(f"model.path={self._folder}: tensor {name} is missing; the checkpoint is not complete.")
        tensor: Tensor = self._open(self._stored[name].file).get_tensor(name)
        found = tensor[start:stop] if axis == 0 else tensor[:, start:stop]
        self._mapped += found.nbytes
        return found

    def _open(self, file: str) -> Any:
        if self._name != file or self._mapped > MAPPED_BYTES:
            self._name, self._mapped = file, 0
            self._handle = open_file(self._folder / file)
        return self._handle


def save_folder(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    like: Path,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write `weights` as safetensors, beside copies of `like`'s configuration and tokenizer.

    Tensors come in any order and are written at once as `dtype`, so only one is in memory. config.json gets the dtype.
    The write is atomic: everything is written beside the folder and then renamed. Raises ValueError if the weights do
    not have these `shapes`.
    """
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with FolderWriter(partial, shapes, dtype, max_shard_size) as writer:
        for name, tensor in weights:
            writer.write(name, tensor)
        writer.finish()
    copy_model_files(like, partial)
    label_dtype(partial / "config.json", dtype)
    put_in_place(partial, folder)


def model_files(folder: Path) -> list[Path]:
    """List the files of a model besides its weights. Leave out sub-folders.

    Raises ConfigError for a file that cannot be read, for example a broken link.
    """
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if not path.is_dir()})
    for path in files:
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            what = f"a link to {os.readlink(path)}, which" if path.is_symlink() else "a file that"
            raise ConfigError(
                f"model.path={folder}: {path.name} is {what} cannot be read ({error.strerror}), and every checkpoint "
                "has a copy of it; restore or remove it."
            ) from None
    return files


def copy_model_files(source: Path, target: Path) -> None:
    """Copy the files of a model besides its weights into a folder. Make the folder if it does not exist."""
    write_model_files(read_model_files(source), target)


def read_model_files(folder: Path) -> dict[str, bytes]:
    """Return the content of `model_files` by name."""
    return {path.name: path.read_bytes() for path in model_files(folder)}


def write_model_files(files: Mapping[str, bytes], target: Path) -> None:
    """Write the files that `read_model_files` returned into a folder. Make the folder if it does not exist."""
    target.mkdir(exist_ok=True)
    for name, content in files.items():
        (target / name).write_bytes(content)


class FolderWriter(AbstractContextManager["FolderWriter"]):
    """The safetensors files of a model with known shapes. Tensors are written in any order."""

    def __init__(
        self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_size: str
    ) -> None:
        self._of_tensor: dict[str, FileWriter] = {}
        split = split_into_files(shapes, dtype, max_shard_size)
        write_index(folder, split)
        with ExitStack() as stack:
            for file, names in split.filename_to_tensors.items():
                writer = FileWriter(folder / file, {name: shapes[name] for name in names}, dtype)
                self._of_tensor |= dict.fromkeys(names, stack.enter_context(writer))
            self._files = stack.pop_all()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor. Raises ValueError if it is not the model's, has another shape, or was written before."""
        if name not in self._of_tensor:
            raise ValueError(f"{name}: not a tensor of this model.")
        self._of_tensor[name].write(name, tensor)

    def finish(self) -> None:
        """Wait until all files are on the disk. Raises ValueError if a tensor was not written."""
        for writer in set(self._of_tensor.values()):
            writer.finish()

    def __exit__(self, *_: object) -> None:
        self._files.close()


def split_into_files(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_size: str) -> StateDictSplit:
    """Decide which tensors go into which file."""
    weightless = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    return split_torch_state_dict_into_shards(weightless, max_shard_size=max_shard_size)


def write_index(folder: Path, split: StateDictSplit) -> None:
    """Write which tensor is in which file, if there are several files."""
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


class FileWriter(AbstractContextManager["FileWriter"]):
    """One safetensors file with known shapes. Tensors are written in any order."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._shapes, self._dtype = shapes, dtype
        [dtype_name] = [name for name, known in DTYPES.items() if known == dtype]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": dtype_name, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._missing = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in shapes}  # name -> first byte
        self._file = NewFile(path)
        self._file.write(memoryview(len(text).to_bytes(8, "little") + text))

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor. Raises ValueError if it is not the file's, has another shape, or was written before."""
        if name not in self._missing:
            raise ValueError(f"{name}: {'written twice' if name in self._shapes else 'not a tensor of this file'}.")
        if tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(f"{name}: has shape {list(tensor.shape)} instead of {list(self._shapes[name])}.")
        self._file.seek(self._missing.pop(name))
        content = tensor.detach().to("cpu", self._dtype).contiguous().view(-1).view(torch.uint8)
        self._file.write(content.numpy().data)

    def finish(self) -> None:
        """Wait until the file is on the disk. Raises ValueError if a tensor was not written."""
        if self._missing:
            raise ValueError(f"not written: {', '.join(sorted(self._missing))}.")
        self._file.finish()

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def label_dtype(path: Path, dtype: torch.dtype) -> None:
    """Set the dtype of the weights in a config.json."""
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)  # its name before transformers 4.56
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")
