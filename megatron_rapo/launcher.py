"""Which process of how many this is, as torchrun or srun says it in the environment. No torch."""

from __future__ import annotations

import os

from megatron_rapo.config import ConfigError

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def adopt_srun() -> None:
    """Under srun by itself, set the variables that torchrun would set.

    SLURM_STEP_NUM_TASKS is there only for what srun starts, not in the job script around it. Raises ConfigError without
    MASTER_ADDR and MASTER_PORT, by which the processes find each other.
    """
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    os.environ.update({ours: os.environ[theirs] for ours, theirs in _SLURM.items()})
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)}: not set under srun, so its processes cannot find each other; export "
            "MASTER_ADDR (a node of the job) and MASTER_PORT (a free port) in the job script."
        )


def rank() -> int:
    """This process' place among all; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes that the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_of_node() -> bool:
    """Whether no other process of this machine comes before this one; true without a launcher."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
