from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.runtime.rank import adopt_srun, local_world_size, rank, world_size

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {  # the second task of the second node: a job step of 4 tasks
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"},
    **{"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1"},
}
MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "12345"}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Replace the process environment by an empty one."""
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
    """srun starts a torchrun per node, which starts the processes. So torchrun's variables count."""
    environment.update(SRUN | TORCHRUN)
    adopt_srun()
    assert world_size() == 8
    assert ours(environment) == TORCHRUN


def test_a_shell_in_an_allocation(environment: dict[str, str]) -> None:
    """salloc says how many tasks there may be, but has started none."""
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


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("RANK", "x", "0 to 1000000"),
        ("RANK", "-1", "0 to 1000000"),
        ("RANK", "9" * 5000, "0 to 1000000"),
        ("RANK", "\N{ARABIC-INDIC DIGIT THREE}", "0 to 1000000"),
        ("WORLD_SIZE", "0", "1 to 1000000"),
        ("WORLD_SIZE", "8.0", "1 to 1000000"),
        ("LOCAL_RANK", "", "0 to 10000"),
        ("LOCAL_WORLD_SIZE", "0", "1 to 10000"),
        ("MASTER_PORT", "65536", "0 to 65535"),
        ("MASTER_PORT", "http", "0 to 65535"),
    ],
)
def test_variables_that_are_no_numbers(environment: dict[str, str], name: str, value: str, limits: str) -> None:
    environment.update(TORCHRUN | {name: value})
    with pytest.raises(ConfigError) as refused:
        adopt_srun()
    shown = value if len(value) < 80 else f"{'9' * 80}... (5,000 characters)"
    assert str(refused.value) == (
        f"{name}={shown}: not a whole number from {limits}; unset it, or start the run with torchrun or srun."
    )


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"])
def test_variables_of_srun_that_are_no_numbers(environment: dict[str, str], name: str) -> None:
    environment.update(SRUN | MASTER | {name: "x"})
    with pytest.raises(ConfigError, match=f"^{name}=x: not a whole number from "):
        adopt_srun()


def test_srun_without_a_place(environment: dict[str, str]) -> None:
    environment.update({name: value for name, value in (SRUN | MASTER).items() if name != "SLURM_LOCALID"})
    with pytest.raises(ConfigError) as refused:
        adopt_srun()
    assert str(refused.value) == "SLURM_LOCALID: not set, although srun sets it; start the run with torchrun or srun."


@pytest.mark.parametrize("missing", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_rank_without_the_rest(environment: dict[str, str], missing: str) -> None:
    environment.update({name: value for name, value in TORCHRUN.items() if name != missing})
    adopt_srun()  # a command of one process may go on
    with pytest.raises(ConfigError) as refused:
        world_size()
    assert str(refused.value) == (
        f"RANK=3: is set, but {missing} not; unset it to run one process, or start the run with torchrun or srun."
    )


def test_a_rank_beyond_the_world(environment: dict[str, str]) -> None:
    environment.update(TORCHRUN | {"RANK": "8"})
    with pytest.raises(ConfigError) as refused:
        world_size()
    assert str(refused.value) == "RANK=8: not below WORLD_SIZE=8; start the run with torchrun or srun."


def test_processes_of_this_node(environment: dict[str, str]) -> None:
    assert local_world_size() == 1
    environment["LOCAL_WORLD_SIZE"] = "4"
    assert local_world_size() == 4
