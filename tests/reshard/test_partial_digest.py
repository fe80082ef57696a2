"""However a model is split, the parts' digests add up to the same number."""

from __future__ import annotations

import pytest
import torch

from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import TORCH_NORMS, fill, hf_shapes, trainer_shards
from megatron_rapo.reshard.partial_digest import Part, part_digest, parts
from tests.models.test_parameter_map import shape

MODEL = shape(num_layers=1, tied=False, vocab_size=131)


def tensors(model: ModelShape, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in hf_shapes(model).items()}


def total(weights: dict[str, torch.Tensor], *, tensor: int, data: int) -> dict[str, int]:
    """Sum the digests of all parts by name. Shards of `tensor` ranks are each split over `data` ranks."""
    found = dict.fromkeys(weights, 0)
    numbers = {name: i for i, name in enumerate(weights)}
    dtype = next(iter(weights.values())).dtype

    def read(name: str, axis: int, start: int, stop: int) -> torch.Tensor:
        return weights[name].narrow(axis, start, stop - start)

    for rank in range(tensor):
        for shard in trainer_shards(MODEL, tensor=tensor, rank=rank, norms=TORCH_NORMS).values():
            if rank and not shard.split:
                continue
            local = torch.full(shard.shape, torch.nan, dtype=dtype)
            fill(local, shard, read)
            flat, start = local.flatten(), 0
            for run in flat.tensor_split(data):
                for part in parts(run, start, shard):
                    found[part.name] += int(part_digest(part, numbers[part.name]))
                start += len(run)
    return {name: number % 2**64 for name, number in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tensor", "data"), [(1, 3), (2, 1), (2, 7)])
def test_the_sum_does_not_depend_on_the_cut(tensor: int, data: int, dtype: torch.dtype) -> None:
    weights = tensors(MODEL, dtype)
    expected = {
        name: int(part_digest(Part(name, 0, 0, weight if weight.dim() == 2 else weight[:, None]), i)) % 2**64
        for i, (name, weight) in enumerate(weights.items())
    }
    assert total(weights, tensor=1, data=1) == expected == total(weights, tensor=tensor, data=data)


def by_hand(values: list[list[int]], tensor: int) -> int:
    """Compute the digest by its definition, with Python's integers."""

    def factor(place: int) -> int:
        number = (tensor + place * 0x9E3779B97F4A7C15) % 2**64
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return (number ^ number >> 31) | 1

    return sum(x * factor(r) * factor(-1 - c) for r, row in enumerate(values) for c, x in enumerate(row)) % 2**64


def test_it_is_the_sum_that_it_says() -> None:
    values = torch.randn(37, 11)
    bits = values.view(torch.int32).tolist()
    assert int(part_digest(Part("w", 0, 0, values), 5)) % 2**64 == by_hand(bits, 5)


@pytest.mark.parametrize("change", ["one bit", "two rows", "two columns", "sign of zero", "shift"])
def test_what_changes_shows(change: str) -> None:
    values = torch.randn(20, 30)
    values[3, 4] = 0.0
    other = values.clone()
    if change == "one bit":
        other.view(torch.int32)[7, 8] ^= 1
    elif change == "two rows":
        other[[1, 2]] = values[[2, 1]]
    elif change == "two columns":
        other[:, [1, 2]] = values[:, [2, 1]]
    elif change == "sign of zero":
        other[3, 4] = -0.0
    else:
        other = values.flatten().roll(1).view(20, 30)
    assert int(part_digest(Part("w", 0, 0, values), 0)) != int(part_digest(Part("w", 0, 0, other), 0))
