"""A number that says what a tensor holds, bit by bit and place by place: 64 bits, the same on every device.

R rows, W words of 8 bytes in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BYTES = 8
BLOCK_BYTES = 2**20
"""Rows are taken in blocks that stay in a CPU's cache between the two sums."""


def digest(values: Tensor) -> Tensor:
    """sum_i mix(sum_j x_ij, i) + sum_j mix(sum_i x_ij, -1 - j) modulo 2^64, x the rows' bits as 64-bit words; int64 [].

    `values` is [R, C] or [C], of any dtype; rows that do not end on a word are taken as filled up with zeros, so that
    the digest depends on the values alone, not on how they lie in memory. Whatever changes the sum of a row or of a
    column of words changes it, but for a chance of 2^-64, and so do rows or columns that change places. (What changes
    no such sum takes changes in four words at least, at the corners of rectangles, that cancel each other.) Two passes
    over memory and no copies.
    """
    words_RW = _words(values)
    num_rows, num_columns = words_RW.shape
    by_row_R = torch.empty(num_rows, dtype=torch.int64, device=values.device)
    by_column_W = torch.zeros(num_columns, dtype=torch.int64, device=values.device)
    step = max(1, BLOCK_BYTES // (WORD_BYTES * num_columns)) if values.device.type == "cpu" else num_rows
    for start in range(0, num_rows, step):
        block = words_RW[start : start + step]
        torch.sum(block, dim=1, out=by_row_R[start : start + step])
        by_column_W += block.sum(dim=0)
    places = torch.arange(-num_columns, num_rows, device=values.device)
    return mix(torch.cat([by_column_W.flip(0), by_row_R]), places).sum()


def _words(values: Tensor) -> Tensor:
    """The rows as int64 [R, W]."""
    values = values.detach()
    rows = values if values.dim() == 2 else values[None]
    size = rows.element_size()
    in_words = (n * size % WORD_BYTES == 0 for n in (rows.shape[1], rows.stride(0), rows.storage_offset()))
    if rows.stride(1) != 1 or not all(in_words):
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % (WORD_BYTES // size))).contiguous()
    return rows.view(torch.int64)


def mix(numbers: Tensor, places: Tensor) -> Tensor:
    """Pseudo-random numbers, int64, one to one with `numbers` at each place.

    The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) of number + place times 2^64 over the golden ratio.
    """
    mixed = numbers + places * -0x61C8864680B583EB  # constants as signed numbers
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in; torch's >> copies the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
