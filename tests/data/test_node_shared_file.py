"""Child processes ask for a file. Each reports when it starts to write it, and holds it until it is told to end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_rapo.data.node_shared_file import END, node_file
from megatron_rapo.errors import InputError

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys
from megatron_rapo.data.node_shared_file import END, node_file
def make(file):
    print("makes", flush=True)
    file.write(b"made by %d " % os.getpid())
    if sys.stdin.readline() == "fail\\n":
        raise ValueError("no")
    file.write(END)
held = node_file("a", make)
print(bytes(held.memory).decode(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    processes = []

    def start() -> subprocess.Popen[str]:
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"megatron_rapo-{os.getuid()}"


def hears(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()


def test_one_makes_it_and_the_last_removes_it(start, folder: Path) -> None:
    first = start()
    assert hears(first) == "makes"
    others = [start() for _ in range(3)]
    tell(first)
    made = f"made by {first.pid} {END.decode()}"
    assert [hears(process) for process in (first, *others)] == [made] * 4
    for process in (first, *others):
        assert (folder / "a").exists()
        tell(process)
        assert process.wait(60) == 0
    assert not folder.exists()


@pytest.mark.parametrize("end", ["killed", "raises"])
def test_the_next_takes_over_from_one_that_does_not_finish(start, folder: Path, end: str) -> None:
    first = start()
    assert hears(first) == "makes"
    second = start()
    if end == "killed":
        first.send_signal(signal.SIGKILL)
    else:
        tell(first, "fail")
    assert first.wait(60) != 0
    assert hears(second) == "makes"
    tell(second)
    assert hears(second) == f"made by {second.pid} {END.decode()}"
    tell(second)
    assert second.wait(60) == 0 and not folder.exists()


def test_what_killed_processes_left_is_removed_and_not_used(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name in ("a", "b"):
        (folder / name).write_bytes(b"whole, but of whom? " + END)
    held = node_file("a", lambda file: file.write(b"new " + END) and None)
    assert bytes(held.memory) == b"new " + END and sorted(path.name for path in folder.iterdir()) == ["a"]
    other = node_file("c", lambda file: file.write(b"c " + END) and None)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]  # "a" is in use
    again = node_file("a", lambda file: pytest.fail("it is there"))
    assert bytes(again.memory) == bytes(held.memory)
    del held, again
    assert sorted(path.name for path in folder.iterdir()) == ["c"]
    other.unlink()
    assert not folder.exists() and bytes(other.memory) == b"c " + END


def test_a_folder_of_somebody_else(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match=rf"^TMPDIR={tmp_path}: other users can access {folder}; remove it, or set "):
        node_file("a", lambda file: None)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="other users can access"):
        node_file("a", lambda file: None)


def test_a_disk_that_does_not_take_it(folder: Path, tmp_path: Path) -> None:
    def make(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        InputError, match=rf"^TMPDIR={tmp_path}: prompts cannot be shared in {folder}: the disk is full "
    ):
        node_file("a", make)
    assert list(folder.iterdir()) == []

    def make_of_nothing(file: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with pytest.raises(InputError, match="No such file or directory"):
        node_file("a", make_of_nothing)
