"""Start train or evaluate on several processes; the exit status is that of the command itself.

    megatron-rapo launch --nproc-per-node 8 train run.toml

On several nodes, make the same call on each, with --nnodes, --node-rank and --master-addr. Under srun, do not use
launch: srun starts megatron-rapo train itself (slurm/launch.sh).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from megatron_rapo.commands.arguments import command_parser, whole_number
from megatron_rapo.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

COMMANDS = ("train", "evaluate")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
QUIET = (75, 128 + signal.SIGINT)
"""Exit statuses of a run that was told to stop. It has printed that itself."""


def main(arguments: Sequence[str]) -> int:
    """Run the processes and return the exit status: 0, or that of the process that failed first.

    Raises InputError for a command that cannot be launched.
    """
    options = _parse(arguments)
    if options.command not in COMMANDS:
        raise InputError(
            f"launch {options.command}: runs on one process; call megatron-rapo {options.command} by itself, or launch "
            f"{' or '.join(COMMANDS)}."
        )
    for number in FORWARDED:
        signal.signal(number, _forward)
    with tempfile.TemporaryDirectory(prefix="megatron_rapo-launch-") as logs:
        return _run(options, logs)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("launch", __doc__ or "")
    parser.usage = "%(prog)s [options] COMMAND ..."
    parser.add_argument(
        "--nproc-per-node",
        type=whole_number(1, 1024),
        default=1,
        metavar="N",
        help="processes on this node, one for each GPU (1)",
    )
    parser.add_argument("--nnodes", type=whole_number(1, 65535), default=1, metavar="N", help="number of nodes (1)")
    parser.add_argument(
        "--node-rank", type=whole_number(0, 65534), default=0, metavar="I", help="number of this node, from 0"
    )
    parser.add_argument("--master-addr", default="127.0.0.1", metavar="HOST", help="address of node 0")
    parser.add_argument(
        "--master-port", type=whole_number(1, 65535), default=29500, metavar="PORT", help="free port of node 0 (29500)"
    )
    parser.add_argument("command", metavar="COMMAND", help=f"{' or '.join(COMMANDS)}, and its own arguments")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.node_rank >= options.nnodes:
        parser.error(f"--node-rank {options.node_rank}: the nodes are 0 to {options.nnodes - 1}")
    if options.nnodes > 1 and options.master_addr == "127.0.0.1":
        parser.error(f"--nnodes {options.nnodes}: name node 0 with --master-addr, by which the others find it")
    return options


def _run(options: argparse.Namespace, logs: str) -> int:
    """Run torchrun, without its own traceback, exit status (143 after SIGTERM) and log folders."""
    from torch.distributed import run as torchrun  # takes a second to import
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    several = ["--nnodes", options.nnodes, "--node-rank", options.node_rank]
    several += ["--master-addr", options.master_addr, "--master-port", options.master_port]
    meeting = ["--standalone"] if options.nnodes == 1 else several  # standalone takes a free port
    command = ["--module", "megatron_rapo", options.command, *options.arguments]
    words = [*meeting, "--nproc-per-node", options.nproc_per_node, "--log-dir", logs]
    words += ["--signals-to-handle", "SIGQUIT", *command]  # the others are forwarded by `main`
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun sets it too, with a warning
    logging.disable(logging.ERROR)  # of this process, which does nothing but wait for the others
    try:
        torchrun.run(torchrun.parse_args([str(word) for word in words]))
    except ChildFailedError as failed:
        return _status(failed)
    return 0


def _status(failed: ChildFailedError) -> int:
    """Return the status of the process that failed first, and name it."""
    rank, failure = failed.get_first_failure()
    code = failure.exitcode
    status = 128 - code if code < 0 else code
    if status not in QUIET:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        print(f"process {rank} of the run {how}; what it said is above", file=sys.stderr)
    return status


def _forward(number: int, _frame: FrameType | None) -> None:
    """Forward a signal to the processes; end here if there are none yet."""
    children = psutil.Process().children()
    if not children:
        sys.exit(128 + number)
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue  # has just ended
