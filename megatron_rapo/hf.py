"""Hugging Face model folders: what the model is, its weights read slice by slice, and writing a new folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_rapo.checkpoints import put_in_place
from megatron_rapo.config import ConfigError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
COMPANIONS = ("config.json", "generation_config.json", "*token*", "vocab.*", "merges.txt", "*.jinja", "*.model")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Everything about a model's architecture that the trainer and the resharding need."""

    architecture: str  # e.g. "Qwen2ForCausalLM"
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding, the checkpoint's own padding included
    tied: bool  # the output layer shares the embedding's weights
    qkv_bias: bool
    qk_norm: bool  # queries and keys are normalised, head by head
    norm_eps: float
    rope_theta: float
    max_position: int  # longest sequence, tokens


def read_shape(folder: Path) -> ModelShape:
    """The shape in `folder`/config.json.

    Raises ConfigError for a missing folder or file, an architecture that is not supported, or a setting of it that
    would change the mathematics and is not implemented.
    """
    config = _read_config(folder)
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"model.path={folder}: architecture {architecture} is not supported; "
            f"supported: {', '.join(sorted(_ARCHITECTURES))}. To add one, say what it is made of in hf.py and "
            "where its parameters live in reshard/layout.py."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _refuse(folder, "rope type", rope.get("rope_type", rope.get("type", "default")), {"default"})
    _refuse(folder, "use_sliding_window", config.get("use_sliding_window", False), {False})
    _refuse(folder, "hidden_act", config.get("hidden_act", "silu"), {"silu"})
    if architecture != "Qwen2ForCausalLM":  # which has a bias for q, k and v, always, and no such setting
        _refuse(folder, "attention_bias", config.get("attention_bias", False), {False})
    _refuse(folder, "mlp_bias", config.get("mlp_bias", False), {False})
    missing = [name for name in _REQUIRED if not isinstance(config.get(name), int)]
    if missing:
        raise ConfigError(
            f"model.path={folder}: config.json has no number for {', '.join(missing)}; take the model's own file."
        )
    heads = config["num_attention_heads"]
    return ModelShape(
        architecture=architecture,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
        max_position=config["max_position_embeddings"],
        **_ARCHITECTURES[architecture],
    )


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {"qkv_bias": True, "qk_norm": False},
    "Qwen3ForCausalLM": {"qkv_bias": False, "qk_norm": True},
    "LlamaForCausalLM": {"qkv_bias": False, "qk_norm": False},
}
"""Dense decoders with RMSNorm, rotary positions and a gated SiLU MLP differ in these; the parameter map
(reshard/layout.py) has an entry for what each adds."""
_REQUIRED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ConfigError(f"model.path={folder}: no such folder; give a folder with config.json and *.safetensors.")
    try:
        config = _read_object(folder / "config.json")
    except FileNotFoundError:
        raise ConfigError(f"model.path={folder}: holds no config.json; give a Hugging Face model folder.") from None
    return config


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error}); mend the file.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: not a JSON object; mend the file.")
    return content


def _refuse(folder: Path, name: str, value: Any, allowed: set[Any]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"model.path={folder}: {name}={value} is not implemented and would be trained wrongly; "
            f"use a model with {name} in {sorted(allowed)}."
        )


class WeightReader:
    """Reads slices of a folder's tensors without loading the rest; made by `open_weights`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        if (folder / INDEX).exists():
            files = _read_object(folder / INDEX).get("weight_map", {})
            absent = sorted({name for name in files.values() if not (folder / name).exists()})
            if absent:
                raise ConfigError(
                    f"model.path={folder}: {INDEX} names {', '.join(absent)}, not there; fetch the whole model."
                )
        elif (folder / WEIGHTS).exists():
            with safe_open(folder / WEIGHTS, framework="pt") as handle:
                files = dict.fromkeys(handle.keys(), WEIGHTS)
        else:
            raise ConfigError(f"model.path={folder}: neither {WEIGHTS} nor {INDEX} is there; give safetensors weights.")
        self._folder = folder
        self._files: dict[str, str] = files
        self._handles = {
            name: stack.enter_context(safe_open(folder / name, framework="pt")) for name in sorted(set(files.values()))
        }

    @property
    def names(self) -> set[str]:
        """All tensors of the folder."""
        return set(self._files)

    def read(self, name: str, axis: int, start: int, stop: int) -> torch.Tensor:
        """Rows (axis 0) or columns (axis 1) start to stop of tensor `name`, in the folder's dtype."""
        if name not in self._files:
            raise ConfigError(f"model.path={self._folder}: tensor {name} is missing; the checkpoint is not complete.")
        view = self._handles[self._files[name]].get_slice(name)
        tensor: torch.Tensor = view[start:stop] if axis == 0 else view[:, start:stop]
        return tensor


@contextmanager
def open_weights(folder: Path) -> Iterator[WeightReader]:
    """A WeightReader over `folder`. Raises ConfigError where the folder has no safetensors."""
    with ExitStack() as stack:
        yield WeightReader(folder, stack)


def save_folder(folder: Path, weights: Iterable[tuple[str, torch.Tensor]], *, like: Path) -> None:
    """Write `weights` as safetensors (shards of at most 5 GB) beside copies of `like`'s configuration and tokenizer.

    config.json says which dtype the weights have. The folder appears whole or not at all: everything is written
    beside it and renamed.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
    split = split_torch_state_dict_into_shards(tensors)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, partial / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (partial / INDEX).write_text(json.dumps(index, indent=2))
    for pattern in COMPANIONS:
        for companion in like.glob(pattern):
            shutil.copy2(companion, partial / companion.name)
    _label_dtype(partial / "config.json", next(iter(tensors.values())).dtype)
    put_in_place(partial, folder)


def _label_dtype(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)  # its name before transformers 4.56
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")
