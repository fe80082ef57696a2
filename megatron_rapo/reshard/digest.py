"""Compute a digest of a tensor's bits and their positions: 64 bits, the same on every device.

R rows, W words of 8 bytes in a row; N tensors. With many tensors most time goes into starting operations. So only the
sums are computed per tensor, and the rest for all tensors together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WORD_BYTES = 8
BLOCK_BYTES = 2**21
"""Rows are read in blocks small enough to stay in a CPU's cache between the two sums."""


def digest(values: Tensor) -> Tensor:
    """Return sum_i mix(sum_j x_ij, i) + sum_j mix(sum_i x_ij, -1 - j) modulo 2^64, int64 []. x are the bits, as words.

    `values` is [R, C] or [C], of any dtype. Rows that do not end on a word are padded with zeros, so the digest depends
    on the values alone, not on the memory layout. Any change of the sum of a row or of a column of words changes the
    digest, except with a chance of 2^-64. So do swapped rows or columns. (A change that keeps all these sums changes at
    least four words, at the corners of rectangles, that cancel each other.) Reads memory twice and copies nothing.
    """
    return digests([sums(values)])[0]


class Sums(NamedTuple):
    """Sums of a tensor at one time, int64."""

    by_column_W: Tensor  # over each column of words
    by_row_R: Tensor


def sums(values: Tensor) -> Sums:
    """Return the sums that a tensor's digest is computed from. Reads the whole tensor."""
    words_RW = _words(values)
    num_rows, num_columns = words_RW.shape
    step = max(1, BLOCK_BYTES // (WORD_BYTES * num_columns)) if values.device.type == "cpu" else num_rows
    if step >= num_rows:
        by_row_R = words_RW.sum(dim=1)  # first: it reads at full memory speed and fills the cache for the other sum
        return Sums(words_RW.sum(dim=0), by_row_R)
    by_row_R = torch.empty(num_rows, dtype=torch.int64)
    by_column_W = torch.zeros(num_columns, dtype=torch.int64)
    for start in range(0, num_rows, step):
        block = words_RW[start : start + step]
        torch.sum(block, dim=1, out=by_row_R[start : start + step])
        by_column_W += block.sum(dim=0)
    return Sums(by_column_W, by_row_R)


def digests(parts: Sequence[Sums]) -> Tensor:
    """Return the digest of each of N tensors, int64 [N]."""
    shapes = [(len(part.by_column_W), len(part.by_row_R)) for part in parts]
    places = {shape: _places(*shape, parts[0].by_row_R.device) for shape in set(shapes)}
    numbers = torch.cat([numbers for part in parts for numbers in (part.by_column_W, part.by_row_R)])
    ends = torch.tensor([0, *(columns + rows for columns, rows in shapes)], device=numbers.device).cumsum(0)
    up_to = torch.nn.functional.pad(mix(numbers, torch.cat([places[shape] for shape in shapes])).cumsum(0), (1, 0))
    return up_to[ends].diff()


def _places(num_columns: int, num_rows: int, device: torch.device) -> Tensor:
    """Return -1, -2, ... for columns, then 0, 1, ... for rows."""
    return torch.cat([torch.arange(-1, -1 - num_columns, -1, device=device), torch.arange(num_rows, device=device)])


def _words(values: Tensor) -> Tensor:
    """Return the rows as 64-bit words, int64 [R, W]."""
    values = values.detach()
    rows = values if values.dim() == 2 else values[None]
    size = rows.element_size()
    in_words = (n * size % WORD_BYTES == 0 for n in (rows.shape[1], rows.stride(0), rows.storage_offset()))
    if rows.stride(1) != 1 or not all(in_words):
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % (WORD_BYTES // size))).contiguous()
    return rows.view(torch.int64)


def mix(numbers: Tensor, places: Tensor) -> Tensor:
    """Return pseudo-random numbers, int64. At each place the mapping from `numbers` is one to one.

    Applies the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) to number + place * 2^64 / golden ratio.
    """
    mixed = numbers + places * -0x61C8864680B583EB  # constants are written as signed numbers
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's >> copies the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
