"""Digests of files show every damage, and where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.checkpoints.manifest import BLOCK_BYTES, MANIFEST, Manifest, digests, whole, write_manifest

CONTENT = bytes(range(256)) * 4
PLACES = [(0, 100), (100, 700), (800, 224)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a file of one range and a file of three."""
    for name in ("one", "three"):
        (tmp_path / name).write_bytes(CONTENT)
    write_manifest(tmp_path, {"one": whole(tmp_path / "one"), "three": digests(tmp_path / "three", PLACES)})
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        manifest = Manifest(folder)
        manifest.verify(manifest.files)
    return str(raised.value)


def test_what_was_written_is_sound(folder: Path) -> None:
    manifest = Manifest(folder)
    assert manifest.files == ["one", "three"]
    manifest.verify(manifest.files)
    manifest.verify_range("three", 100, CONTENT[100:800])


@pytest.mark.parametrize(("byte", "first", "last"), [(0, 0, 100), (99, 0, 100), (100, 100, 800), (1023, 800, 1024)])
def test_a_flipped_bit_shows_in_its_range(folder: Path, byte: int, first: int, last: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[byte] ^= 4
    (folder / "three").write_bytes(damaged)
    said = (
        f"{folder / 'three'}: bytes {first:,} to {last:,} have changed since they were written; the file is damaged, "
        "take another checkpoint."
    )
    assert refusal(folder) == said
    with pytest.raises(CheckpointError) as raised:
        Manifest(folder).verify_range("three", first, bytes(damaged[first:last]))
    assert str(raised.value) == said


def test_a_truncated_file(folder: Path) -> None:
    (folder / "one").write_bytes(CONTENT[:-1])
    assert refusal(folder) == (
        f"{folder / 'one'}: has 1,023 bytes instead of 1,024; it is truncated or was overwritten, take another "
        "checkpoint."
    )


def test_a_missing_file(folder: Path) -> None:
    (folder / "one").unlink()
    assert refusal(folder) == f"{folder / 'one'}: is missing; take another checkpoint."


def test_a_missing_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert refusal(folder) == f"{folder}: has no {MANIFEST}, so it is incomplete; take another."


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"a": [[1]]}}'])
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert refusal(folder).startswith(f"{folder / MANIFEST}: cannot be read (")


def test_ranges_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * (2 * BLOCK_BYTES + 5))
    [found] = whole(path)
    assert found.length == 2 * BLOCK_BYTES + 5
    path.write_bytes(b"x" * (2 * BLOCK_BYTES + 4) + b"y")
    assert whole(path)[0].digest != found.digest
