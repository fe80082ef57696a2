"""Compute digests of parts of a tensor. Their sum is the digest of the tensor: 64 bits, the same on any device.

reshard/digest.py is stronger and faster, but needs whole rows and columns. Here every number is multiplied by a factor
for its place, so the sum does not depend on how the tensor is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rapo.models.parameter_map import Shard
from megatron_rapo.reshard.digest import mix

BLOCK_NUMBERS = 2**18
"""Rows are read in blocks whose products (8 bytes a number) stay in a CPU's cache."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtypes by their size in bytes, to look at the bits of other numbers."""


class Part(NamedTuple):
    """A rectangle of a Hugging Face tensor."""

    name: str
    row: int  # first row in the Hugging Face tensor
    column: int
    values_RC: Tensor


def part_digest(part: Part, tensor: int) -> Tensor:
    """Return sum_rc bits(x_rc) a_r b_c modulo 2^64 of a part of tensor number `tensor`; int64 [].

    a and b are odd pseudo-random numbers that depend on the tensor and on the row or column in the whole tensor. So a
    change of one number always shows. Other changes are missed with a chance of about 2^-32, or less if they are not
    only in the highest bits.
    """
    values_RC = part.values_RC.detach()
    num_rows, num_columns = values_RC.shape
    bits_RC = values_RC.contiguous().view(INTEGERS[values_RC.element_size()])
    device, step = values_RC.device, max(1, BLOCK_NUMBERS // max(1, num_columns))
    factor_R = _factors(tensor, torch.arange(part.row, part.row + num_rows, device=device))
    factor_C = _factors(tensor, -1 - torch.arange(part.column, part.column + num_columns, device=device))
    total = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, num_rows, step if device.type == "cpu" else 64 * step):
        rows = slice(start, start + (step if device.type == "cpu" else 64 * step))
        total += (torch.mul(bits_RC[rows], factor_C).sum(dim=1) * factor_R[rows]).sum()
    return total


def parts(flat: Tensor, start: int, shard: Shard) -> Iterator[Part]:
    """Yield the parts of Hugging Face tensors that numbers `start` to `start + len(flat)` of a flat `shard` hold."""
    num_columns = shard.shape[1] if len(shard.shape) == 2 else 1
    for row, column, values_RC in _rectangles(flat, start, num_columns):
        first = (row, column)[shard.axis]
        for piece in shard.pieces:
            begin = max(first, piece.start)
            end = min(first + values_RC.shape[shard.axis], piece.start + piece.size)
            if begin < end:
                values, there = values_RC.narrow(shard.axis, begin - first, end - begin), piece.hf_start - piece.start
                place = (begin + there, column) if shard.axis == 0 else (row, begin + there)
                yield Part(piece.hf_name, *place, values)


def _rectangles(flat: Tensor, start: int, num_columns: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield a run of a flattened matrix as up to three rectangles, each with its first row and column."""
    row, column = divmod(start, num_columns)
    begun = min(len(flat), -start % num_columns)  # the rest of a row that started earlier
    whole = (len(flat) - begun) // num_columns * num_columns
    if begun:
        yield row, column, flat[None, :begun]
        row += 1
    if whole:
        yield row, 0, flat[begun : begun + whole].view(-1, num_columns)
        row += whole // num_columns
    if begun + whole < len(flat):
        yield row, 0, flat[None, begun + whole :]


def _factors(tensor: int, places: Tensor) -> Tensor:
    """Return odd numbers, int64, one for each place."""
    return mix(torch.full_like(places, tensor), places) | 1
