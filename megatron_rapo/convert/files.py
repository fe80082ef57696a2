"""Make a folder file by file, in several processes. After an interruption keep the files that were finished."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.atomic_write import explained, partial_of, put_in_place, write_text_atomically
from megatron_rapo.runtime.safe_json import JSONError, read_json

RECIPE = "recipe.json"  # in the unfinished folder: its source and settings
DONE = ".done"  # beside a finished file: the result of its job
Progress = Callable[[int], None]  # called with the number of bytes just written
POLL_S = 0.2


class ConversionError(InputError):
    """A conversion is impossible, or impossible with the given options."""


class Job(Protocol):
    """One file of the folder. Can be pickled."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def make(self, path: Path, progress: Progress) -> Any:
        """Write the file. The result, in JSON's types, is passed to `finish` of `make_folder`."""


def make_folder(
    folder: Path,
    jobs: Sequence[Job],
    finish: Callable[[Path, Mapping[str, Any]], None],
    *,
    recipe: Mapping[str, Any],
    processes: int,
    progress: Progress,
) -> None:
    """Make every job's file, then `finish` the folder and give it its name: it appears complete or not at all.

    Files that an interrupted call with the same `recipe` finished are kept. Raises ConversionError if `folder` exists
    or cannot be written.
    """
    if folder.exists():
        raise ConversionError(f"{folder}: exists already; name another folder, or remove it.")
    try:
        done = _make_jobs(folder, jobs, recipe, processes, progress)
        finish(partial_of(folder), done)
        for job in jobs:
            (partial_of(folder) / (job.name + DONE)).unlink()
        (partial_of(folder) / RECIPE).unlink()
        put_in_place(partial_of(folder), folder)
    except OSError as error:
        raise ConversionError(f"{folder}: could not be written: {explained(error, folder)}") from error


def _make_jobs(
    folder: Path, jobs: Sequence[Job], recipe: Mapping[str, Any], processes: int, progress: Progress
) -> dict[str, Any]:
    """Return each job's result, from this or an interrupted call."""
    partial = partial_of(folder)
    _claim(partial, recipe)
    todo = [job for job in jobs if not _is_done(partial, job)]
    progress(sum(job.nbytes for job in jobs) - sum(job.nbytes for job in todo))
    if processes == 1:
        for job in todo:
            _make(partial, job, progress)
    else:
        _make_all(partial, todo, processes, progress)
    return {job.name: read_json(partial / (job.name + DONE)) for job in jobs}


def _is_done(partial: Path, job: Job) -> bool:
    """Return whether its file is there with a readable result."""
    try:
        read_json(partial / (job.name + DONE))
    except (FileNotFoundError, JSONError):
        return False
    return (partial / job.name).is_file()


def _claim(partial: Path, recipe: Mapping[str, Any]) -> None:
    """Keep an unfinished folder with the same recipe, else replace it with an empty one."""
    text = json.dumps(recipe, indent=2, sort_keys=True)
    noted = partial / RECIPE
    if not noted.exists() or noted.read_text() != text:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_text_atomically(noted, text)


def _make(partial: Path, job: Job, progress: Progress) -> None:
    result = job.make(partial / job.name, progress)
    write_text_atomically(partial / (job.name + DONE), json.dumps(result))


def _make_all(partial: Path, jobs: Sequence[Job], processes: int, progress: Progress) -> None:
    """Run the jobs in worker processes, which report progress through a queue."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        told = manager.Queue()
        pending = {pool.submit(_make_in_worker, partial, job, told) for job in jobs}
        try:
            while pending:
                finished, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                while not told.empty():
                    progress(told.get())
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make_in_worker(partial: Path, job: Job, told: Any) -> None:
    torch.set_num_threads(1)
    _make(partial, job, told.put)


def state_of(source: Path) -> dict[str, list[int]]:
    """Return size in bytes and modification time in ns of each file, to detect changes of the folder."""
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(source.resolve().iterdir())}
