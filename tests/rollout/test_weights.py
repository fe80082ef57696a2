from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_rapo.rollout.weights import checked, expected_shapes
from tests.models import save_tiny_qwen2

SHAPES = {"a": (2, 3), "b": (3,)}


def tensors(*names: str) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, torch.full(SHAPES.get(name, (1,)), float(i))) for i, name in enumerate(names))


def test_expected_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    folder = save_tiny_qwen2(tmp_path / "m", tied=False)
    written = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    assert expected_shapes(folder, tied=False) == written
    assert written["lm_head.weight"] == (128, 64)
    assert expected_shapes(folder, tied=True) == {k: v for k, v in written.items() if k != "lm_head.weight"}


def test_expected_shapes_of_a_sharded_folder(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, tmp_path / "1")
    save_file({"b": torch.zeros(3)}, tmp_path / "2")
    save_file({"old": torch.zeros(9)}, tmp_path / "model.safetensors")  # not in the index
    index = {"weight_map": {"a": "1", "b": "2"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert expected_shapes(tmp_path, tied=False) == SHAPES


def test_a_right_stream_passes_in_order_and_is_converted() -> None:
    passed = list(checked(tensors("b", "a"), SHAPES, torch.bfloat16))
    assert [name for name, _ in passed] == ["b", "a"]
    assert [tensor.dtype for _, tensor in passed] == [torch.bfloat16] * 2
    assert passed[1][1].tolist() == [[1.0] * 3] * 2


def test_the_same_dtype_is_not_copied() -> None:
    source = torch.zeros(2, 3, requires_grad=True)
    ((_, passed),) = list(checked(iter([("a", source)]), {"a": (2, 3)}, torch.float32))
    assert passed.data_ptr() == source.data_ptr() and not passed.requires_grad


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "1 of the weights are wrong: b is missing"),
        (("a", "b", "c"), "1 of the weights are wrong: c is not a parameter of the model"),
        (("a", "b", "a"), "1 of the weights are wrong: a came twice"),
        ((), "2 of the weights are wrong: a is missing; b is missing"),
    ],
)
def test_mistakes_are_named_after_the_whole_stream(names: tuple[str, ...], message: str) -> None:
    stream = tensors(*names)
    with pytest.raises(ValueError, match=message):
        list(checked(stream, SHAPES, torch.float32))
    assert list(stream) == []


def test_a_wrong_shape_is_not_passed_on() -> None:
    passed = []
    with pytest.raises(ValueError, match=r"a has shape \[3, 2\] instead of \[2, 3\]"):
        for name, _ in checked(iter([("a", torch.zeros(3, 2)), ("b", torch.zeros(3))]), SHAPES, torch.float32):
            passed.append(name)
    assert passed == ["b"]
