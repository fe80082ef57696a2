"""Read this process's rank and the number of processes from the variables of torchrun or srun. No torch."""

from __future__ import annotations

import os

from megatron_rapo.config import ConfigError
from megatron_rapo.errors import shortened

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LIMITS = {
    "RANK": (0, 10**6),
    "WORLD_SIZE": (1, 10**6),
    "LOCAL_RANK": (0, 10**4),
    "LOCAL_WORLD_SIZE": (1, 10**4),
    "MASTER_PORT": (0, 65535),
    "SLURM_PROCID": (0, 10**6),
    "SLURM_STEP_NUM_TASKS": (1, 10**6),
    "SLURM_LOCALID": (0, 10**4),
}
"""The variables that are read, with their smallest and largest values."""


def adopt_srun() -> None:
    """Set the variables that torchrun would set, if srun started this process directly.

    SLURM_STEP_NUM_TASKS exists only in processes that srun starts, not in the job script. Raises ConfigError if
    MASTER_ADDR or MASTER_PORT is missing, by which the processes find each other, or a variable has an invalid number.
    """
    if "RANK" not in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        for ours, theirs in _SLURM.items():
            if theirs not in os.environ:
                raise ConfigError(f"{theirs}: not set, although srun sets it; start the run with torchrun or srun.")
            os.environ[ours] = str(_number(theirs, 0))
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)}: not set under srun, so its processes cannot find each other; export "
                "MASTER_ADDR (a node of the job) and MASTER_PORT (a free port) in the job script."
            )
    for name in _LIMITS:
        _number(name, 0)


def rank() -> int:
    """Return this process's rank, or 0 without a launcher. Raises ConfigError."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return how many processes the launcher started, or 1 without a launcher.

    Raises ConfigError if a variable is missing that the processes need to connect.
    """
    if "RANK" not in os.environ:
        return 1
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"RANK={rank()}: is set, but {', '.join(missing)} not; unset it to run one process, or start the run with "
            "torchrun or srun."
        )
    place, processes = rank(), _number("WORLD_SIZE", 1)
    if place >= processes:
        raise ConfigError(f"RANK={place}: not below WORLD_SIZE={processes}; start the run with torchrun or srun.")
    return processes


def local_world_size() -> int:
    """Return how many of the processes run on this node, or 1 if no launcher sets it. Raises ConfigError."""
    return _number("LOCAL_WORLD_SIZE", 1)


def is_first_of_node() -> bool:
    """Return whether this is the first process on its node; True without a launcher."""
    return _number("LOCAL_RANK", 0) == 0


def _number(name: str, default: int) -> int:
    text, (least, largest) = os.environ.get(name), _LIMITS[name]
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= largest):
        raise ConfigError(
            f"{name}={shortened(text)}: not a whole number from {least} to {largest}; unset it, or start the run with "
            "torchrun or srun."
        )
    return int(text)
