"""Atomic writes of folders, and files written in blocks."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from megatron_rapo.runtime import atomic_write
from megatron_rapo.runtime.atomic_write import (
    BLOCK_BYTES,
    NewFile,
    explained,
    put_in_place,
    replacing,
    write_bytes_atomically,
    write_text_atomically,
)


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / text).write_text(text)
    return path


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    for text in ("old\n", "größer\n"):
        write_text_atomically(path, text)
        assert path.read_bytes() == text.encode() and listing(tmp_path) == {"a.json"}

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_write.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomically(path, "new")
    assert path.read_text() == "größer\n" and listing(tmp_path) == {"a.json"}


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_bytes(b"half of")
        assert partial.parent == path.parent and path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and listing(tmp_path) == {"a.bin"}
    with replacing(path) as partial:
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new" and listing(tmp_path) == {"a.bin"}


def test_a_body_that_writes_nothing_replaces_nothing(tmp_path: Path) -> None:
    write_bytes_atomically(tmp_path / "a", b"old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"old"


def test_put_in_place(tmp_path: Path) -> None:
    put_in_place(folder_with(tmp_path / "a.partial", "new"), tmp_path / "a")
    assert listing(tmp_path) == {"a/new"}


def test_what_was_there_is_replaced_whole(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "old")
    put_in_place(folder_with(tmp_path / "a.partial", "new"), folder)
    assert listing(tmp_path) == {"a/new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # nor an empty a.replaced


def test_what_an_interrupted_replacement_left_does_not_matter(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "old")
    folder_with(tmp_path / "a.replaced", "older")
    put_in_place(folder_with(tmp_path / "a.partial", "new"), folder)
    assert listing(tmp_path) == {"a/new"}


def test_the_old_folder_is_kept_until_the_new_one_is_there(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "a.partial", folder)
    assert {path.name for path in tmp_path.rglob("*")} >= {"old"}


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 1])
def test_all_is_written(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    with NewFile(tmp_path / "file") as file:
        file.write(memoryview(content))
        assert file.tell() == size
        file.finish()
    assert (tmp_path / "file").read_bytes() == content


def test_any_place_is_written(tmp_path: Path) -> None:
    with NewFile(tmp_path / "file") as file:
        for place in (3, 0):
            file.seek(place)
            file.write(memoryview(bytes([place + 1] * 3)))
        file.finish()
    assert (tmp_path / "file").read_bytes() == bytes([1, 1, 1, 4, 4, 4])


def test_it_goes_to_the_disk_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(atomic_write, "SYNC_BYTES", 1000)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with NewFile(tmp_path / "file") as file:
        for _ in range(20):
            file.write(memoryview(bytes(999)))
    assert 1 <= len(synced) <= 10


def test_what_the_disk_did_not_take_is_said_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reports the error once, to the call that waits for the disk."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic_write, "SYNC_BYTES", 1000)
    monkeypatch.setattr(os, "fdatasync", fail)
    with NewFile(tmp_path / "file") as file:
        file.write(memoryview(bytes(1001)))
        with pytest.raises(OSError, match="Input/output error"):
            file.finish()


def test_a_full_disk() -> None:
    with NewFile(Path("/dev/full")) as file, pytest.raises(OSError, match="No space left on device"):
        file.write(memoryview(bytes(10)))


def test_a_fault_is_explained_where_it_is(tmp_path: Path) -> None:
    """Outside the folder the message names the path; for a copy to a full disk, the path of the copy."""
    folder, model = tmp_path / "run", tmp_path / "model/tokenizer.json"

    def said(number: int, *names: object) -> str:
        first, *second = [str(name) for name in names] or [None]
        return explained(OSError(number, os.strerror(number), first, None, *second), folder)

    full = r"the disk is full \(No space left on device; [0-9.]+ GB free\); make room on it\."
    assert re.fullmatch(full, said(errno.ENOSPC))
    assert re.fullmatch(full, said(errno.ENOSPC, folder / "a"))
    assert re.fullmatch(full, said(errno.ENOSPC, model, folder / "a"))
    assert re.fullmatch(f"{tmp_path / 'other'}: {full}", said(errno.ENOSPC, tmp_path / "other"))
    for path in (folder, folder / "a/b", tmp_path / "run.partial/a", tmp_path):
        assert said(errno.EACCES, path) == "it cannot be written to (Permission denied); name a folder that can."
    assert said(errno.EACCES, model) == f"{model} cannot be read or written (Permission denied); check this path."
    assert said(errno.EISDIR, model) == f"{model} cannot be read or written (Is a directory); check this path."
    assert said(errno.EIO) == "[Errno 5] Input/output error; check the disk."
