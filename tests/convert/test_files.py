"""A folder is made file by file: it appears complete or not at all, and no file is made twice."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_rapo.convert.files import ConversionError, Progress, make_folder


@dataclass(frozen=True)
class Text:
    """A job that writes one line, or fails if the file `trap` exists."""

    name: str
    trap: Path

    @property
    def nbytes(self) -> int:
        return 10

    def make(self, path: Path, progress: Progress) -> str:
        if self.trap.exists():
            path.write_text("half of")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_text(f"this is {self.name}")
        progress(self.nbytes)
        return f"made {self.name}"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[int]]:
    """Return a function that makes tmp_path/out of three files and returns its progress. The last file has a trap."""

    def make(processes: int = 1, recipe: str = "first") -> list[int]:
        told: list[int] = []
        none = tmp_path / "no trap"
        files = [Text("a", none), Text("b", none), Text("c", tmp_path / "trap")]
        make_folder(
            tmp_path / "out",
            files,
            lambda folder, done: (folder / "said").write_text(" ".join(str(done[f.name]) for f in files)) and None,
            recipe={"recipe": recipe},
            processes=processes,
            progress=told.append,
        )
        return told

    return make


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


WHOLE = {"a": "this is a", "b": "this is b", "c": "this is c", "said": "made a made b made c"}


@pytest.mark.parametrize("processes", [1, 2])
def test_it_is_there_when_it_is_whole(tmp_path: Path, make: Callable[..., list[int]], processes: int) -> None:
    (tmp_path / "trap").touch()
    with pytest.raises(
        ConversionError, match=r"out: could not be written: the disk is full \(No space left on device; "
    ):
        make(processes)
    assert not (tmp_path / "out").exists()
    finished = [path.stem for path in (tmp_path / "out.partial").glob("*.done")]
    assert finished and "c" not in finished
    times = {name: (tmp_path / "out.partial" / name).stat().st_mtime_ns for name in finished}
    (tmp_path / "trap").unlink()
    assert sum(make(processes)) == 30
    assert content(tmp_path / "out") == WHOLE
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == times  # not made again
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("note", [b"", b"cposix\nsystem\n(S'exit 3'\ntR.", b"\x80\x04N."])
def test_a_note_that_is_not_json_is_not_believed(tmp_path: Path, make: Callable[..., list[int]], note: bytes) -> None:
    """Old versions wrote pickles."""
    (tmp_path / "trap").touch()
    with pytest.raises(ConversionError):
        make()
    (tmp_path / "out.partial" / "a").write_text("another's")
    (tmp_path / "out.partial" / "a.done").write_bytes(note)
    (tmp_path / "trap").unlink()
    make()
    assert content(tmp_path / "out") == WHOLE


def test_what_was_begun_of_something_else_is_not_used(tmp_path: Path, make: Callable[..., list[int]]) -> None:
    (tmp_path / "trap").touch()
    with pytest.raises(ConversionError):
        make()
    (tmp_path / "out.partial" / "a").write_text("of the first recipe")
    (tmp_path / "trap").unlink()
    make(recipe="second")
    assert content(tmp_path / "out") == WHOLE


def test_what_is_there_is_not_lost(tmp_path: Path, make: Callable[..., list[int]]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError) as raised:
        make()
    assert str(raised.value) == f"{tmp_path / 'out'}: exists already; name another folder, or remove it."
