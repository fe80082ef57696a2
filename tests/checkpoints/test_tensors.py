"""Read damaged files, and rectangles that span several chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.checkpoints.manifest import MANIFEST, digests, whole, write_manifest
from megatron_rapo.checkpoints.tensors import (
    BACKEND,
    COMMON,
    METADATA,
    OBJECTS,
    Chunk,
    Reader,
    chunk_places,
    write_file,
    write_metadata,
)

OBJECTS_HELD = {"state/1": b"of a layer", "state/2": b"another's", "state/3": b"of a layer"}
VALUES = torch.arange(2 * 6 * 8.0).view(2, 6, 8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Make a checkpoint of one tensor in two files, split by rows and columns."""
    written = []
    for number in range(2):
        chunks = []
        for row, column in ((0, 0), (0, 4), (3, 0), (3, 4)):
            part = VALUES[number : number + 1, row : row + 3, column : column + 4].clone()
            chunks.append((Chunk("w", (2, 6, 8), torch.float32, (number, row, column), (1, 3, 4)), part))
        written += write_file(tmp_path / f"__{number}_0.distcp", chunks)
    write_metadata(tmp_path, written, OBJECTS_HELD, {"iteration": 5})
    ranges = {file: [each.range for each in written if each.file == file] for file in sorted({w.file for w in written})}
    ranges[OBJECTS] = digests(tmp_path / OBJECTS, chunk_places(tmp_path)[OBJECTS])
    write_manifest(tmp_path, ranges | {name: whole(tmp_path / name) for name in (METADATA, COMMON, BACKEND)})
    return tmp_path


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [((0, 0, 0), (2, 6, 8)), ((1, 0, 0), (1, 6, 8)), ((0, 2, 3), (2, 2, 3)), ((1, 5, 7), (1, 1, 1))],
)
def test_any_rectangle(checkpoint: Path, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    where = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
    assert torch.equal(Reader(checkpoint).read("w", offsets, sizes), VALUES[where])


def test_what_megatron_keeps_beside_the_tensors(checkpoint: Path) -> None:
    reader = Reader(checkpoint)
    assert reader.common["iteration"] == 5 and list(reader.tensors) == ["w"]
    assert {key: reader.read_object(key) for key in reader.objects} == OBJECTS_HELD
    assert (checkpoint / OBJECTS).read_bytes() == b"of a layeranother's"  # equal ones once


def test_a_damaged_object(checkpoint: Path) -> None:
    (checkpoint / OBJECTS).write_bytes(b"of a layeranother`s")
    reader = Reader(checkpoint)
    assert reader.read_object("state/3") == OBJECTS_HELD["state/3"]
    with pytest.raises(CheckpointError, match=r"objects.distcp: bytes 10 to 19 have changed since they were written; "):
        reader.read_object("state/2")


@pytest.mark.parametrize("name", [METADATA, COMMON, BACKEND])
def test_a_folder_that_is_no_whole_checkpoint(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError) as raised:
        Reader(checkpoint)
    assert str(raised.value) == (
        f"{checkpoint}: has no {name}, so it is no complete Megatron checkpoint (torch_dist); name the folder that has "
        "them (for a run: RUN/checkpoints/step-...)."
    )


def refusal(checkpoint: Path, key: str = "w", sizes: tuple[int, ...] = (2, 6, 8)) -> str:
    with pytest.raises(CheckpointError) as raised:
        Reader(checkpoint).read(key, (0,) * len(sizes), sizes)
    return str(raised.value)


def test_a_tensor_that_is_not_there(checkpoint: Path) -> None:
    assert refusal(checkpoint, "v") == (f"{checkpoint}: tensor v is missing; it is not a checkpoint of this model.")
    assert refusal(checkpoint, sizes=(2, 7, 8)) == f"{checkpoint}: tensor w has only 96 of 112 numbers."


def test_a_file_that_is_not_there(checkpoint: Path) -> None:
    (checkpoint / "__1_0.distcp").unlink()
    assert refusal(checkpoint) == (
        f"{checkpoint / '__1_0.distcp'}: is missing, and holds part of w; take another checkpoint."
    )


@pytest.mark.parametrize("digests_kept", [True, False])
def test_a_truncated_file(checkpoint: Path, digests_kept: bool) -> None:
    """Files of Megatron-LM have no digests."""
    if not digests_kept:
        (checkpoint / MANIFEST).unlink()
    assert torch.equal(Reader(checkpoint).read("w", (0, 0, 0), (2, 6, 8)), VALUES)
    path = checkpoint / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:2000])
    said = refusal(checkpoint)
    assert said.startswith(f"{path}: has 2,000 bytes, but bytes ")
    assert said.endswith(" hold part of w; it is truncated, take another checkpoint.")


def test_a_flipped_bit(checkpoint: Path) -> None:
    path = checkpoint / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[content.find(VALUES[1, 0, 0].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    said = refusal(checkpoint)
    assert said.startswith(f"{path}: bytes ")
    assert said.endswith("have changed since they were written; the file is damaged, take another checkpoint.")


def test_what_torch_cannot_read(checkpoint: Path) -> None:
    """Only without digests does torch see the damage first."""
    (checkpoint / MANIFEST).unlink()
    path = checkpoint / "__1_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK", b"QQ"))
    said = refusal(checkpoint)
    assert said.startswith(f"{path}: the part of w at byte ")
    assert said.endswith("it is damaged, take another checkpoint.")
