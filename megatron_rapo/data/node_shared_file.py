"""Share a file between the processes of a machine: one process writes it, the others map it into memory.

This needs no process group, and leaves no file behind. A lock on the file itself (flock) shows its state; the kernel
releases the lock of a process that dies. The writer holds the lock exclusively. Each user holds a shared lock as long
as it uses the file. A file without a lock was left behind by killed processes, and the next process that finds it
removes it. A file that was mapped is never written to again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.atomic_write import explained

END = b"ARROW1"
"""The last bytes of a complete file. All shared files are Arrow files."""
_ONLY_OWNER = 0o077


class NodeFile:
    """A complete file, mapped into memory. It exists until the last process that uses it releases it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._path = path
        weakref.finalize(self, _release, file, path, os.getpid())  # also at the end of the process

    def unlink(self) -> None:
        """Remove the file's name. Call this when all processes have opened it; then nothing can be left behind."""
        self._path.unlink(missing_ok=True)
        _remove_empty(self._path.parent)


def node_file(name: str, make: Callable[[BinaryIO], None]) -> NodeFile:
    """Return the file `name` of this machine and user. The first process writes it with `make` while others wait.

    If that process dies or `make` raises, the next one takes over. `name` must identify everything that the content
    depends on. Raises InputError if the temporary folder cannot be used.
    """
    folder = Path(tempfile.gettempdir()) / f"megatron_rapo-{os.getuid()}"
    try:
        while True:
            _claim(folder)
            file = _locked(folder / name, make)
            if file is not None:
                return NodeFile(file, folder / name)
    except OSError as error:
        raise InputError(
            f"TMPDIR={folder.parent}: prompts cannot be shared in {folder}: {explained(error, folder.parent)}"
        ) from None


def _claim(folder: Path) -> None:
    """Create the folder for this user alone. Raises OSError, and InputError if others can use it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _ONLY_OWNER:
        raise InputError(
            f"TMPDIR={folder.parent}: other users can access {folder}; remove it, or set TMPDIR to another folder."
        )


def _locked(path: Path, make: Callable[[BinaryIO], None]) -> BinaryIO | None:
    """Return the complete file with a shared lock, or None if the caller has to try again."""
    try:
        file = _open(path, os.O_CREAT)
    except FileNotFoundError:  # another process has just ended and removed the folder
        return None
    try:
        if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(path, file):
            _remove_left_over(path)
            if os.fstat(file.fileno()).st_size:  # this file is left over too
                path.unlink()
                file.close()
                return None
            try:
                make(file)
                file.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for the process that writes it
        if _is_at(path, file) and _is_whole(file):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _open(path: Path, flags: int = 0) -> BinaryIO:
    return open(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600), "r+b")


def _lock(file: BinaryIO, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Return whether `path` is still this file. Another process may have removed it."""
    try:
        return path.lstat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _is_whole(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    return size > len(END) and os.pread(file.fileno(), len(END), size - len(END)) == END


def _remove_left_over(path: Path) -> None:
    """Remove the other files of the folder that no process uses."""
    for other in path.parent.iterdir():
        if other != path:
            with suppress(OSError), _open(other) as file:
                _unlink_if_free(file, other)


def _release(file: BinaryIO, path: Path, process: int) -> None:
    if os.getpid() != process:  # a forked process has no lock of its own
        return
    with file, suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # if several processes end together, the last one gets the lock below
        _unlink_if_free(file, path)
        _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # the folder is not empty, or already removed
        folder.rmdir()


def _unlink_if_free(file: BinaryIO, path: Path) -> None:
    if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(path, file):
        path.unlink(missing_ok=True)
