"""Read the headers of a Hugging Face folder's safetensors files, and check that they fit config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_rapo.config import ConfigError
from megatron_rapo.errors import shortened
from megatron_rapo.models.shape import LFS_POINTER, is_lfs_pointer, read_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Supported number formats by safetensors' names. Others would need scales, or lose bits."""
IGNORED = re.compile(r".*\brotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Buffers that older versions of transformers saved. config.json determines them. transformers skips them too."""
_SHOWN = 3  # names in a message
_COMPARED_ROWS = 4096


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name


def read_headers(folder: Path) -> dict[str, Stored]:
    """Return every tensor of the folder by its name. Reads no weights.

    Raises ConfigError if there are no safetensors, a file is missing or damaged, or the index does not fit the files.
    """
    if not (folder / INDEX).exists():
        if not (folder / WEIGHTS).exists():
            raise ConfigError(f"model.path={folder}: neither {WEIGHTS} nor {INDEX} is there; give safetensors weights.")
        return dict(_header(folder / WEIGHTS))
    files = _read_index(folder)
    if (folder / WEIGHTS).exists() and WEIGHTS not in files.values():
        raise ConfigError(
            f"model.path={folder}: holds {WEIGHTS} and an {INDEX} of other files, so there are two sets of weights; "
            "remove the one that is not meant."
        )
    return _read_shards(folder, files)


def open_file(path: Path) -> Any:
    """Open a safetensors file. Raises ConfigError if that is not possible."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: is not a file; fetch the whole model.")
        if path.stat().st_size == 0:
            raise ConfigError(f"{path}: is empty; download the file again.")
        if is_lfs_pointer(path):
            raise ConfigError(f"{path}: {LFS_POINTER}")
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ConfigError(
            f"{path}: not a whole safetensors file ({shortened(str(error), 200)}); it is cut short or damaged, "
            "download it again."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); check the file.") from None


def check_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> dict[str, Stored]:
    """Check that the weights are those of the model with these tensor `shapes`. Return where they are.

    Every tensor of the model must be there, with its shape and a supported number format. The only other tensors may be
    IGNORED buffers and, with `tied` embeddings, a copy of the embedding as HEAD. Reads only headers and that copy.
    Raises ConfigError.
    """
    stored = read_headers(folder)
    place = f"model.path={folder}: "
    if missing := [name for name in shapes if name not in stored]:
        raise ConfigError(
            f"{place}the weights lack {_listed(missing)}, of the {len(shapes)} tensors that config.json promises; take "
            "weights and config.json of one model."
        )
    for name, shape in shapes.items():
        _check_tensor(folder, name, stored[name], shape)
    copied = {HEAD} if tied and EMBEDDING in stored else set()
    known = shapes.keys() | copied
    if others := [name for name in stored if name not in known and not IGNORED.fullmatch(name)]:
        raise ConfigError(
            f"{place}the weights have {_listed(others)}, which config.json does not promise, and leaving it out would "
            f"make another model; {_advice(others)}"
        )
    if copied & stored.keys() and not _same(folder, stored[EMBEDDING], stored[HEAD]):
        raise ConfigError(
            f"{place}config.json has tie_word_embeddings=true, and {HEAD} differs from {EMBEDDING}; set "
            f"tie_word_embeddings to false if the model was trained so, or remove {HEAD} from the weights."
        )
    return {name: stored[name] for name in shapes}


def _check_tensor(folder: Path, name: str, found: Stored, shape: tuple[int, ...]) -> None:
    if found.dtype not in DTYPES:
        raise ConfigError(
            f"{folder / found.file}: {name} has number format {found.dtype}, and {', '.join(DTYPES)} are read; give "
            "the model's bfloat16 weights, or dequantise them."
        )
    if found.shape != shape:
        raise ConfigError(
            f"{folder / found.file}: {name} has shape {list(found.shape)}, and config.json promises {list(shape)}; "
            "take weights and config.json of one model."
        )


def _read_index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor. Raises ConfigError for a file that is outside the folder, or missing."""
    files = read_object(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ConfigError(
            f"{folder / INDEX}: weight_map is not a map from tensors to file names; copy the model's own file again."
        )
    for name in sorted(set(files.values())):
        if not _IN_FOLDER.fullmatch(name):
            raise ConfigError(
                f"{folder / INDEX}: names {shortened(repr(name))}, not a .safetensors file in the folder itself; copy "
                "the model's own file again."
            )
    if absent := sorted({name for name in files.values() if not (folder / name).exists()}):
        raise ConfigError(f"model.path={folder}: {INDEX} names {_listed(absent)}, not there; fetch the whole model.")
    return files


_IN_FOLDER = re.compile(r"[\w-][\w.-]{0,200}\.safetensors", re.ASCII)


def _read_shards(folder: Path, files: Mapping[str, str]) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    for file in sorted(set(files.values())):
        for name, found in _header(folder / file):
            if name in stored:
                raise ConfigError(
                    f"model.path={folder}: {shortened(name)} is in {stored[name].file} and in {file}; fetch the whole "
                    "model again, into an empty folder."
                )
            stored[name] = found
    wrong = [name for name in {**files, **stored} if name not in stored or files.get(name) != stored[name].file]
    if wrong:
        raise ConfigError(
            f"{folder / INDEX}: {_listed(wrong)} not in the file that it names; fetch the whole model again, into an "
            "empty folder."
        )
    return stored


def _header(path: Path) -> Iterator[tuple[str, Stored]]:
    handle = open_file(path)
    for name in handle.keys():  # noqa: SIM118
        part = handle.get_slice(name)
        yield name, Stored(path.name, tuple(part.get_shape()), part.get_dtype())


def _same(folder: Path, one: Stored, other: Stored) -> bool:
    """Return whether embedding and head are equal to the bit. Compares some rows at a time, to save memory."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    a, b = open_file(folder / one.file).get_slice(EMBEDDING), open_file(folder / other.file).get_slice(HEAD)
    bits = torch.int32 if one.dtype == "F32" else torch.int16
    parts = (slice(start, start + _COMPARED_ROWS) for start in range(0, one.shape[0], _COMPARED_ROWS))
    return all(torch.equal(a[rows].view(bits), b[rows].view(bits)) for rows in parts)


def _advice(others: Iterable[str]) -> str:
    if any(re.search(r"scale|qweight|qzeros|g_idx|absmax|zero_point", name) for name in others):
        return "they look quantised: give the model's bfloat16 weights, or dequantise them."
    if any("lora_" in name for name in others):
        return "they look like an adapter: merge it into its base model first."
    return "take weights and config.json of one model."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(shortened(name) for name in names[:_SHOWN]) + more
