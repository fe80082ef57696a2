"""Train a policy; start it with launch or srun."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron_rapo.commands.arguments import config_parser, said
from megatron_rapo.config.file import load_config
from megatron_rapo.runtime import gc_control
from megatron_rapo.runtime.exit_status import only_by_returning
from megatron_rapo.runtime.rank import adopt_srun

REQUEUE_STATUS = 75
"""Exit status of a run that stopped because it was told to, and can go on (sysexits.h: EX_TEMPFAIL)."""
MAX_PROFILED = 1000
"""Most steps that --profile may name."""


def main(arguments: Sequence[str]) -> int:
    """Train in this process. Return 0 at the end of the run, and REQUEUE_STATUS if it was told to stop.

    Raises InputError.
    """
    options = _parse(arguments)
    adopt_srun()
    with only_by_returning():
        config = load_config(options.config, options.set)
        with gc_control.imports():
            from megatron_rapo.run import train
        finished = train(config, resume=options.resume, overwrite=options.overwrite, profile=options.profile)
    return 0 if finished else REQUEUE_STATUS


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = config_parser("train", __doc__ or "")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the run folder's latest checkpoint")
    existing.add_argument("--overwrite", action="store_true", help="delete an earlier run in the run folder first")
    parser.add_argument(
        "--profile",
        type=_steps,
        default=(),
        metavar="STEPS",
        help="write a Chrome trace of these steps, say 2,10-12, to RUN/profile/ (docs/profiling.md)",
    )
    return parser.parse_args(arguments)


def _steps(text: str) -> tuple[int, ...]:
    """Parse the steps of --profile."""
    try:
        ranges = [
            (int(first), int(last or first)) for first, _, last in (part.partition("-") for part in text.split(","))
        ]
    except ValueError:
        ranges = [(1, 0)]
    if any(last < first for first, last in ranges):
        raise argparse.ArgumentTypeError(
            f"{said(text)}: neither steps nor ranges of steps, with commas between; write e.g. --profile 2,10-12"
        )
    if sum(last - first + 1 for first, last in ranges) > MAX_PROFILED:
        raise argparse.ArgumentTypeError(
            f"{said(text)}: more than {MAX_PROFILED:,} steps, and each writes a trace; write e.g. --profile 2,10-12"
        )
    return tuple(step for first, last in ranges for step in range(first, last + 1))
