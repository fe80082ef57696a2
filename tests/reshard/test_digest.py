import pytest
import torch

from megatron_rapo.reshard.digest import BLOCK_BYTES, digest

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


def values(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(256, (*shape[:-1], shape[-1] * dtype.itemsize), generator=generator, dtype=torch.uint8)
    return bits.view(dtype)


def by_hand(tensor):
    """Compute the digest by its definition, with Python's integers."""

    def mixed(number, place):
        number = (number + place * 0x9E3779B97F4A7C15) % 2**64
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return number ^ number >> 31

    rows = tensor if tensor.dim() == 2 else tensor[None]
    words = []
    for row in rows.contiguous().view(torch.uint8).tolist():
        row += [0] * (-len(row) % 8)
        words.append([int.from_bytes(bytes(row[i : i + 8]), "little") for i in range(0, len(row), 8)])
    total = sum(mixed(sum(row), i) for i, row in enumerate(words))
    total += sum(mixed(sum(column), -1 - j) for j, column in enumerate(zip(*words, strict=True)))
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (8, 16), (5, 3), (3, 1)], ids=str)
def test_it_is_the_sum_that_it_says(shape, dtype):
    tensor = values(*shape, dtype=dtype)
    found = digest(tensor)
    assert found.dtype == torch.int64 and found.dim() == 0
    assert int(found) == by_hand(tensor)


def test_blocks_of_rows_change_nothing():
    """The tensor has three and a half blocks, and its last row counts."""
    columns = 64 * 1024
    rows = BLOCK_BYTES // columns * 7 // 2
    tensor = values(rows, columns, dtype=torch.uint8)
    assert digest(tensor) == by_hand(tensor)
    whole = digest(tensor)
    tensor[-1, -1] ^= 1
    assert digest(tensor) != whole


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_does_not_depend_on_how_the_values_lie_in_memory(dtype):
    tensor = values(6, 12, dtype=dtype)
    wide = values(9, 40, dtype=dtype, seed=1)
    expected = digest(tensor)
    for column in range(20):  # places in and out of step with words
        wide[2:8, column : column + 12] = tensor
        assert digest(wide[2:8, column : column + 12]) == expected
    assert digest(tensor.T.contiguous().T) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 10), (9,)], ids=str)
def test_every_single_flipped_bit_shows(shape, dtype):
    tensor = values(*shape, dtype=dtype)
    whole = digest(tensor)
    bits = tensor.view(torch.uint8).view(-1)
    seen = {int(whole)}
    for byte in range(len(bits)):
        for bit in range(8):
            bits[byte] ^= 1 << bit
            seen.add(int(digest(tensor)))
            bits[byte] ^= 1 << bit
    assert len(seen) == 1 + 8 * len(bits)  # and no two of them look alike
    assert digest(tensor) == whole


def test_what_changes_places_shows():
    tensor = values(16, 32)
    whole = digest(tensor)
    for dim in (0, 1):
        order = torch.arange(tensor.shape[dim])
        order[[3, 10]] = order[[10, 3]]
        assert digest(tensor.index_select(dim, order)) != whole
    halves = torch.cat([tensor[8:], tensor[:8]])  # gate and up, changed over
    assert digest(halves) != whole
    assert digest(tensor[:, 16:].repeat(1, 2)) != digest(tensor[:, :16].repeat(1, 2))
    signs = tensor.clone()
    signs[3, [1, 7]] *= -1  # the highest bits of two words of a row
    assert digest(signs) != whole
    assert digest(torch.zeros(16, 32)) != digest(torch.zeros(32, 16)) != digest(torch.zeros(16, 30))


def test_a_parameter_is_taken_without_its_gradient():
    parameter = torch.nn.Parameter(torch.randn(4, 6))
    assert not digest(parameter).requires_grad
    assert digest(parameter) == digest(parameter.detach().clone())
