"""A file that one process of a machine makes and the others map: no process group is needed, and none is left over.

The lock of the file itself (flock, which the kernel takes from a process that dies) says what it is. Who makes it has
the lock alone; who uses it shares the lock for as long as it lives. Where nobody has the lock, the file was left over
by killed processes, and whoever finds it so removes it. A file that was mapped is never written to again.
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
"""What a whole file ends with; all of them are Arrow's."""
_ONLY_OWNER = 0o077


class NodeFile:
    """A whole file, mapped into memory, that stays until the last process which has it lets it go."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._path = path
        weakref.finalize(self, _let_go, file, path, os.getpid())  # at the process' end, too

    def unlink(self) -> None:
        """Remove the name: when all processes have the file, so that nothing is left over however they end."""
        self._path.unlink(missing_ok=True)
        _remove_empty(self._path.parent)


def node_file(name: str, make: Callable[[BinaryIO], None]) -> NodeFile:
    """Return the file `name` of this machine and user; the first process to ask has `make` write it, others wait.

    Where that process dies or `make` raises, the next one takes over. `name` says all that the content depends on.
    Raises InputError for a temporary folder that cannot be used.
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
    """Make the folder, for this user alone. Raises OSError, and InputError where another user made it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _ONLY_OWNER:
        raise InputError(
            f"TMPDIR={folder.parent}: {folder} can be written by others; remove it, or set TMPDIR to another folder."
        )


def _locked(path: Path, make: Callable[[BinaryIO], None]) -> BinaryIO | None:
    """Return the whole file, its lock shared; None where it has to be tried again."""
    try:
        file = _open(path, os.O_CREAT)
    except FileNotFoundError:  # another process, which ended, has removed the folder meanwhile
        return None
    try:
        if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is(path, file):
            _remove_left_over(path)
            if os.fstat(file.fileno()).st_size:  # left over, too
                path.unlink()
                file.close()
                return None
            try:
                make(file)
                file.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for the process that makes it
        if _is(path, file) and _is_whole(file):
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


def _is(path: Path, file: BinaryIO) -> bool:
    """Return whether the name still leads to this file: another process may have removed it meanwhile."""
    try:
        return path.lstat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _is_whole(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    return size > len(END) and os.pread(file.fileno(), len(END), size - len(END)) == END


def _remove_left_over(path: Path) -> None:
    """Remove the other files of the folder that nobody has."""
    for other in path.parent.iterdir():
        if other != path:
            with suppress(OSError), _open(other) as file:
                _unlink_if_free(file, other)


def _let_go(file: BinaryIO, path: Path, process: int) -> None:
    if os.getpid() != process:  # a fork has no lock of its own
        return
    with file, suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # of several processes that end together the last one then gets the lock
        _unlink_if_free(file, path)
        _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it is not empty, or gone already
        folder.rmdir()


def _unlink_if_free(file: BinaryIO, path: Path) -> None:
    if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is(path, file):
        path.unlink(missing_ok=True)
