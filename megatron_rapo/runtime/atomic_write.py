"""Write files and folders atomically, and large files as fast as copying."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

BLOCK_BYTES = 2**16
"""Size of one write, as in shutil.copyfile. It fits in the processor's cache. Linux allocates memory for a file in
pieces of the size of the writes, and allocation of large pieces can be several times as slow."""
SYNC_BYTES = 2**27
PARTIAL = ".partial"  # suffix of a file or folder that is being written
_FULL, _READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)


def blocks(content: memoryview) -> Iterator[memoryview]:
    """Yield `content` in pieces of BLOCK_BYTES, in order."""
    content = content.cast("B")
    for start in range(0, len(content), BLOCK_BYTES):
        yield content[start : start + BLOCK_BYTES]


class NewFile:
    """A file that is synced to the disk while it is written: by another thread, about every SYNC_BYTES.

    Each method may raise the OSError of an earlier write.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._thread = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        self._unsynced = 0

    def write(self, content: memoryview) -> None:
        """Write all of `content`, even if the system accepts only a part at a time."""
        for block in blocks(content):
            self._unsynced += len(block)
            while block:
                block = block[self._file.write(block) :]
        if self._unsynced > SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._wait()
            self._syncing = self._thread.submit(os.fdatasync, self._file.fileno())
            self._unsynced = 0

    def seek(self, place: int) -> None:
        self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        self._wait()
        os.fsync(self._file.fileno())

    def _wait(self) -> None:
        if self._syncing:
            self._syncing.result()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()
        self._file.close()


def partial_of(path: Path) -> Path:
    """Return the temporary name under which a file or folder is written."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name to write to, and rename that file to `path` at the end.

    `path` is always the whole old file or the whole new one, also after a power failure. If the body raises, the old
    one stays. Raises OSError.
    """
    partial = partial_of(path)
    try:
        yield partial
        sync_file(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a small file atomically. Raises OSError."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file in UTF-8 atomically. Raises OSError."""
    write_bytes_atomically(path, text.encode())


def sync_file(path: Path) -> None:
    """Wait until the content of `path` is on the disk. Raises OSError."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk, if its file system supports this. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system does not support it
            raise
    finally:
        os.close(descriptor)


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename the finished folder `partial` to `folder`, then remove an older `folder`.

    The content is on the disk before the rename. Raises OSError.
    """
    for path in partial.rglob("*"):
        if path.is_file():
            sync_file(path)
    for inner in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        sync_folder(inner)
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def is_of_disk(error: OSError) -> bool:
    """Return whether the error means that a disk is full, read-only or faulty."""
    return error.errno in {*_FULL, *_READ_ONLY, errno.EIO}


def explained(error: OSError, folder: Path) -> str:
    """Return the reason why `folder` could not be written, with the fix, for a message.

    If the error is about a path outside `folder`, name that path.
    """
    failed = _failed_path(error) or folder
    partial = str(failed).startswith(f"{folder}.")  # written beside `folder`, then renamed
    elsewhere = "" if partial or failed.is_relative_to(folder) or folder.is_relative_to(failed) else f"{failed}: "
    if error.errno in _FULL:
        existing = next(path for path in (failed, *failed.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        return f"{elsewhere}the disk is full ({os.strerror(error.errno)}; {free / 1e9:.2f} GB free); make room on it."
    if elsewhere:
        return f"{failed} cannot be read or written ({error.strerror}); check this path."
    if error.errno in _READ_ONLY:
        return f"it cannot be written to ({os.strerror(error.errno)}); name a folder that can."
    return f"{error}; check the disk."


def _failed_path(error: OSError) -> Path | None:
    """Return the path that an error is about. For a copy onto a full disk this is the target, the second name."""
    name = error.filename2 if error.errno in _FULL and error.filename2 else error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None
