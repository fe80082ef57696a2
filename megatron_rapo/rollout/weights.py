"""What an engine must be given: the names and shapes of a Hugging Face folder, and a stream checked against them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_rapo.hf import INDEX, WEIGHTS

LM_HEAD = "lm_head.weight"
Shapes = Mapping[str, tuple[int, ...]]


def expected_shapes(folder: Path, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the folder's safetensors, whose data is not read.

    From the files and not from the parameter map, which what is resharded is checked against by this.

    Left out: the output layer where it is tied to the embedding, and the constant rotary frequencies that old
    checkpoints hold.
    """
    index = folder / INDEX
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return {
        name: shape
        for name, shape in shapes.items()
        if not name.endswith("rotary_emb.inv_freq") and not (tied and name == LM_HEAD)
    }


def checked(
    weights: Iterator[tuple[str, torch.Tensor]], expected: Shapes, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass on the tensors that are `expected`, in `dtype`, each once; at the end raise ValueError if that was not all.

    A wrong tensor does not stop the stream: it may contain collectives, which every rank must reach.
    """
    problems: list[str] = []
    given: set[str] = set()
    for name, tensor in weights:
        shape = tuple(tensor.shape)
        if name not in expected:
            problems.append(f"{name} is not a parameter of the model")
        elif name in given:
            problems.append(f"{name} came twice")
        elif shape != expected[name]:
            problems.append(f"{name} has shape {list(shape)} instead of {list(expected[name])}")
        else:
            # vLLM converts too, with a warning for every tensor
            yield name, tensor.detach().to(dtype)
        given.add(name)
    problems += [f"{name} is missing" for name in expected if name not in given]
    if problems:
        raise ValueError(
            f"{len(problems)} of the weights are wrong: {'; '.join(problems[:20])}{'; ...' if problems[20:] else ''}. "
            "Send every tensor of the model folder once, whole, under its Hugging Face name (tied embeddings: "
            f"without {LM_HEAD})."
        )
