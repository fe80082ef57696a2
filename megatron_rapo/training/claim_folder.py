"""Claim the folder of a run: lock it for one run at a time, and empty it for a new one where nothing is lost."""

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
from types import TracebackType

import torch.distributed as dist

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.models import ModelShape
from megatron_rapo.preflight.checks import check_disk
from megatron_rapo.runtime.atomic_write import explained, is_of_disk
from megatron_rapo.runtime.distributed import everywhere, on_first_rank
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.runtime.safe_json import JSONError, parse_json


def claim(config: Config, *, resume: bool = False, overwrite: bool) -> AbstractContextManager[object]:
    """Take the run folder until the context is left, empty unless to `resume`. Collective: all learn of a refusal."""
    with usable(config.run.folder):
        first = dist.get_rank() == 0
        return everywhere(lambda: _take(config, resume=resume, overwrite=overwrite) if first else nullcontext())


def check_room(config: Config, shape: ModelShape) -> None:
    """Refuse a run folder that cannot be written to, or has no room for a checkpoint. Collective."""
    with usable(config.run.folder):
        on_first_rank(lambda: check_disk(config, shape))


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Within it, that the disk does not take what is written is the input's fault."""
    try:
        yield
    except OSError as error:
        if not is_of_disk(error):
            raise
        raise ConfigError(f"run.folder={folder}: {explained(error, folder)}") from None


def _take(config: Config, *, resume: bool, overwrite: bool) -> RunLock:
    """Lock the run folder, which is made, and empty it. Raises ConfigError where that would lose something."""
    folder = config.run.folder
    if not resume:
        _check_removable(config, overwrite=overwrite)  # before there is a file of ours in it
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder)
    if not resume:
        _check_removable(config, overwrite=overwrite)  # now that nobody else writes
        marker = RunFolder(folder).metrics  # goes last: it says that the folder is a run's
        for path in sorted(_content(folder), key=lambda path: path == marker):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return lock


def _check_removable(config: Config, *, overwrite: bool) -> None:
    folder = config.run.folder
    if folder.exists() and _content(folder):
        refusal = _why_not_delete(config) if overwrite else _EARLIER_RUN.format(folder=folder)
        if refusal:
            raise ConfigError(refusal)


def _content(folder: Path) -> list[Path]:
    """List what a run would lose: all but the lock, which must stay one file for whoever tries it."""
    return [path for path in folder.iterdir() if path != RunFolder(folder).lock]


_EARLIER_RUN = (
    "run.folder={folder}: holds an earlier run, which would be lost; pass --resume to go on with it, --overwrite to "
    "delete it, or name another folder."
)


def _why_not_delete(config: Config) -> str | None:
    """Return whether --overwrite would delete something else than an earlier run."""
    folder = config.run.folder.resolve()
    metrics = RunFolder(folder).metrics
    if not metrics.is_file():
        return f"run.folder={folder}: has no {metrics.name}, so no run made it; it is not deleted, name another folder."
    needed = {"model.path": config.model.path, "data.train": config.data.train, "the current folder": Path.cwd()}
    if config.evaluation:
        needed["evaluation.data"] = config.evaluation.data
    for name, path in needed.items():
        if path.resolve().is_relative_to(folder):
            return f"run.folder={folder}: holds {name}, which --overwrite would delete; name another folder."
    return None


class RunLock:
    """Has a run folder until it is closed or the process ends, however it ends. One process of a run takes it.

    It is a lock of the system (flock), so a run that is gone cannot leave one behind. Between machines it works where
    the folder's file system passes such locks on: NFS, Lustre mounted with flock, GPFS. A file system without any gets
    a warning. Raises ConfigError where another run has the folder, and OSError.
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

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _holder(content: bytes) -> str:
    """Say which run it is; it may not have written that yet."""
    try:
        who = parse_json(content)
        return f"another run (process {who['pid']} on {who['host']}, since {who['since']})"
    except (JSONError, KeyError, TypeError):
        return "another run"
