"""Several tensors in one file, in the format of torch.save."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_rapo.checkpoints.archive import ALIGNMENT, load_tensor, map_range, rest, save_tensor
from megatron_rapo.checkpoints.manifest import digests
from megatron_rapo.runtime.atomic_write import NewFile

TENSORS = (
    torch.randn(3, 5, dtype=torch.float64),
    torch.randn(2**20 + 7).bfloat16(),  # several blocks, and a length that nothing divides
    torch.randn(4, 6).t(),
    torch.arange(24.0).view(4, 6)[1:3, 2:],
    torch.tensor(7),
    torch.empty(0, 3),
)


def test_what_is_saved_is_what_torch_reads_and_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with NewFile(path) as file:
        ranges = [save_tensor(tensor, file) for tensor in TENSORS]
    assert digests(path, [(each.start, each.length) for each in ranges]) == ranges
    assert all(each.start % ALIGNMENT == 0 for each in ranges)
    content = path.read_bytes()
    assert ranges[3].length < ranges[2].length  # only the part of the storage that the view shows
    assert ranges[-1].start + ranges[-1].length == len(content)
    for tensor, (start, length, _) in zip(TENSORS, ranges, strict=True):
        same(torch.load(io.BytesIO(content[start : start + length]), weights_only=True), tensor)
        loaded = load_tensor(map_range(path, start, length))
        same(loaded, tensor)
        assert not tensor.numel() or loaded.data_ptr() % tensor.element_size() == 0


@pytest.mark.parametrize("before", [1, 2, 63, 4096, 5001])
def test_an_archive_that_begins_anywhere(tmp_path: Path, before: int) -> None:
    """Megatron writes archives one after another, not aligned."""
    for tensor in TENSORS:
        stream = io.BytesIO()
        torch.save(tensor, stream)
        (tmp_path / "file").write_bytes(bytes(before) + stream.getvalue() + b"the next")
        loaded = load_tensor(map_range(tmp_path / "file", before, len(stream.getvalue())))
        same(loaded, tensor)
        assert loaded.data_ptr() % tensor.element_size() == 0


def test_the_file_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with NewFile(path) as file:
        _, length, _ = save_tensor(torch.ones(100), file)
    before = path.read_bytes()
    load_tensor(map_range(path, 0, length)).zero_()
    assert path.read_bytes() == before == bytes(rest(map_range(path, 0, length)))


def test_bytes_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="greater than file size"):
        map_range(tmp_path / "file", 50, 51)


def test_a_full_disk_is_said() -> None:
    """torch.save itself raises a RuntimeError about positions."""
    with NewFile(Path("/dev/full")) as file, pytest.raises(OSError, match="No space left on device"):
        save_tensor(torch.ones(1000), file)


def same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and torch.equal(found, expected)
