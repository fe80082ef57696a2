from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.launcher import adopt_srun, rank, world_size

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {  # the second task of the second node: a job step of 4 tasks
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"},
    **{"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1"},
}
MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "12345"}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A process environment of its own, empty."""
    with mock.patch.dict(os.environ, clear=True):
        yield os.environ  # type: ignore[misc]


def ours(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in NAMES if name in environment}


def test_without_a_launcher(environment: dict[str, str]) -> None:
    adopt_srun()
    assert world_size() == 1
    assert ours(environment) == {}


def test_torchrun(environment: dict[str, str]) -> None:
    environment.update(TORCHRUN)
    adopt_srun()
    assert world_size() == 8
    assert ours(environment) == TORCHRUN


def test_srun(environment: dict[str, str]) -> None:
    environment.update(SRUN | MASTER)
    adopt_srun()
    assert world_size() == 4
    assert ours(environment) == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MASTER}
    adopt_srun()
    assert world_size() == 4  # it may be asked again


def test_torchrun_under_srun(environment: dict[str, str]) -> None:
    """srun starts one torchrun a node, which starts the processes: its word counts."""
    environment.update(SRUN | TORCHRUN)
    adopt_srun()
    assert world_size() == 8
    assert ours(environment) == TORCHRUN


def test_a_shell_in_an_allocation(environment: dict[str, str]) -> None:
    """salloc says how many tasks there may be, and has started none."""
    environment.update({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0"})  # sbatch's script has this too
    adopt_srun()
    assert world_size() == 1
    assert ours(environment) == {}


def test_srun_of_one_task(environment: dict[str, str]) -> None:
    environment.update(SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"})
    adopt_srun()
    assert world_size() == 1
    assert ours(environment) == {}  # a world of one needs no address


@pytest.mark.parametrize("missing", [["MASTER_ADDR"], ["MASTER_PORT"], ["MASTER_ADDR", "MASTER_PORT"]])
def test_srun_without_a_meeting_place(environment: dict[str, str], missing: list[str]) -> None:
    environment.update({name: value for name, value in (SRUN | MASTER).items() if name not in missing})
    with pytest.raises(ConfigError) as refused:
        adopt_srun()
    assert str(refused.value) == (
        f"{' and '.join(missing)}: not set under srun, so its processes cannot find each other; export "
        "MASTER_ADDR (a node of the job) and MASTER_PORT (a free port) in the job script."
    )
    assert rank() == 3  # known already, so that only the first process speaks
