"""Open TensorBoard on runs, by their folders or by the numbers of their Slurm jobs.

    megatron-rapo tensorboard runs/quickstart
    megatron-rapo tensorboard 4711 4712 --port 6007 --bind_all

The run of a Slurm job is the folder JOBNAME-JOBID in RAPO_RUNS, by default runs/ (slurm/launch.sh). Several runs are
shown side by side under their folders' names. TensorBoard gets all other options. Its page "Custom scalars" groups the
curves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_rapo.commands.arguments import command_parser
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.run_folder import RunFolder


def events_folder(name: str, runs: Path) -> Path:
    """Return where the run's event files are. Raises InputError."""
    folder = Path(name)
    if name.isdecimal() and not folder.is_dir():
        folder = _of_job(name, runs)
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder; give a run's folder or the number of a job.")
    events = folder if folder == RunFolder(folder.parent).tensorboard else RunFolder(folder).tensorboard
    if not events.is_dir():
        raise InputError(f"{name}: {events} is not there; name a run whose monitor.writers have tensorboard.")
    return events


def _of_job(number: str, runs: Path) -> Path:
    found = sorted(runs.glob(f"*-{number}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{number}: {', '.join(map(str, found))} could be meant; name one of these folders.")
    raise InputError(f"{number}: no run of that job in {runs} (RAPO_RUNS); set RAPO_RUNS, or give the run's folder.")


def command(names: Sequence[str], options: Sequence[str], runs: Path) -> list[str]:
    """Return what to start for runs of these names. Raises InputError."""
    folders = [events_folder(name, runs).resolve() for name in names]
    if len(folders) == 1:
        which = ["--logdir", str(folders[0])]
    else:
        which = ["--logdir_spec", ",".join(f"{folder.parent.name}:{folder}" for folder in folders)]
    return [sys.executable, "-m", "tensorboard.main", *which, *options]


def main(arguments: Sequence[str]) -> int:
    """Become TensorBoard; returns only where it cannot be started. Raises InputError for a run that is not there."""
    parser = command_parser("tensorboard", __doc__ or "")
    parser.add_argument("run", nargs="+", metavar="RUN_OR_JOB", help="a run's folder, or the number of its job")
    known, options = parser.parse_known_args(arguments)
    started = command(known.run, options, Path(os.environ.get("RAPO_RUNS", "runs")))
    os.execv(started[0], started)
