"""Claim a run folder: lock it for one run at a time, and empty it for a new run if nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import torch.distributed as dist

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.models import ModelShape
from megatron_rapo.preflight.checks import check_disk
from megatron_rapo.runtime.atomic_write import explained, is_of_disk
from megatron_rapo.runtime.distributed import everywhere, on_first_rank
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.runtime.safe_json import JSONError, parse_json


def claim(config: Config, *, resume: bool = False, overwrite: bool) -> AbstractContextManager[object]:
    """Hold the run folder within this context. Empty it first, unless to `resume`. Collective: all ranks raise."""
    with usable(config.run.folder):
        first = dist.get_rank() == 0
        return everywhere(lambda: _take(config, resume=resume, overwrite=overwrite) if first else nullcontext())


def check_room(config: Config, shape: ModelShape) -> None:
    """Raise ConfigError if the run folder cannot be written to, or has no room for a checkpoint. Collective."""
    with usable(config.run.folder):
        on_first_rank(lambda: check_disk(config, shape))


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn an OSError of a full, read-only or broken disk within this context into a ConfigError."""
    try:
        yield
    except OSError as error:
        if not is_of_disk(error):
            raise
        raise ConfigError(f"run.folder={folder}: {explained(error, folder)}") from None


def _take(config: Config, *, resume: bool, overwrite: bool) -> RunLock:
    """Make, lock and empty the run folder. Raises ConfigError if that would lose something."""
    folder = config.run.folder
    if not resume:
        _check_removable(config, overwrite=overwrite)  # before the lock file is in it
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder)
    if not resume:
        _check_removable(config, overwrite=overwrite)  # again, since now nobody else writes
        marker = RunFolder(folder).metrics  # removed last: it shows that the folder belongs to a run
        for path in sorted(_content(folder), key=lambda path: path == marker):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return lock


def _check_removable(config: Config, *, overwrite: bool) -> None:
    folder = config.run.folder
    if folder.exists() and _content(folder):
        if not overwrite:
            raise ConfigError(
                f"run.folder={folder}: holds an earlier run, which would be lost; pass --resume to go on with it, "
                "--overwrite to delete it, or name another folder."
            )
        _check_overwrite(config)


def _content(folder: Path) -> list[Path]:
    """List what a run would lose. Leave out the lock: every run must try the same file."""
    return [path for path in folder.iterdir() if path != RunFolder(folder).lock]


def _check_overwrite(config: Config) -> None:
    """Raise ConfigError if --overwrite would delete something else than an earlier run."""
    folder = config.run.folder.resolve()
    metrics = RunFolder(folder).metrics
    if not metrics.is_file():
        raise ConfigError(
            f"run.folder={folder}: has no {metrics.name}, so no run made it; it is not deleted, name another folder."
        )
    needed = {"model.path": config.model.path, "data.train": config.data.train, "the current folder": Path.cwd()}
    if config.evaluation:
        needed["evaluation.data"] = config.evaluation.data
    for name, path in needed.items():
        if path.resolve().is_relative_to(folder):
            raise ConfigError(
                f"run.folder={folder}: holds {name}, which --overwrite would delete; name another folder."
            )


class RunLock(AbstractContextManager["RunLock"]):
    """Locks a run folder until it is closed or the process ends. One process of a run takes it.

    It is a lock of the operating system (flock), so a run that has ended cannot leave one behind. It works between
    machines if the folder's file system supports that: NFS, Lustre mounted with flock, GPFS. A file system without
    locks gets a warning. Raises ConfigError if another run holds the folder, and OSError.
    """

    def __init__(self, folder: Path) -> None:
        self._file = open(RunFolder(folder).lock, "a+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = _holder(self._file.read())
            self._file.close()
            raise ConfigError(
                f"run.folder={folder}: {holder} is running in it; wait for its end, stop it, or name another folder."
            ) from None
        except OSError as error:
            print(
                f"WARNING: run.folder={folder}: its file system has no locks ({error.strerror}); a second run in it "
                "would not be noticed",
                file=sys.stderr,
                flush=True,
            )
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}).encode() + b"\n")

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _holder(content: bytes) -> str:
    """Name the run that holds the lock. It may not have written its name yet."""
    try:
        who = parse_json(content)
        return f"another run (process {who['pid']} on {who['host']}, since {who['since']})"
    except (JSONError, KeyError, TypeError):
        return "another run"
