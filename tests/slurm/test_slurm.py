"""The job scripts under a real Slurm of two nodes: a run that loses its nodes, and what is requeued and what is not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_runs import CONFIG, ROOT, metrics, same_run
from tests.slurm.cluster import ENDED, PATH, Cluster, running, wait_until, why_not

ON_CPUS = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")

pytestmark = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


def set_steps(folder: Path, steps: int) -> Path:
    """Write the settings of a run of so many steps, which each start of the job reads again."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder="set by the script", heldout="too", steps=steps))
    return config


def submit(cluster: Cluster, folder: Path, *options: str, steps: int = 1, **variables: object) -> str:
    """The number of a job of slurm/rapo_3b.sh, called in `folder`, that trains the tiny model into folder/run."""
    folder.mkdir(exist_ok=True)
    heldout = folder / "heldout.jsonl"
    heldout.write_text("".join((ROOT / "examples/tiny/heldout.jsonl").read_text().splitlines(keepends=True)[:6]))
    config = set_steps(folder, steps)
    paths = {
        "RAPO_HOME": ROOT,
        "RAPO_CONFIG": config,
        "RAPO_MODEL": "examples/tiny/model",
        "RAPO_TRAIN": "examples/tiny/train.jsonl",
        "RAPO_EVAL": heldout,
        "RAPO_RUN": folder / "run",
        "RAPO_SET": "parallel.tensor=1 parallel.pipeline=2 reshard.parity_every_steps=0 checkpoint.hf_every=0 "
        "monitor.gradient_share_every_steps=0",
        "RAPO_PYTHON": sys.executable,
    }
    command = ["sbatch", "--parsable", f"--chdir={folder}", *ON_CPUS, *options, ROOT / "slurm/rapo_3b.sh"]
    return cluster.call(*command, **paths | variables)


def output(folder: Path, number: str) -> str:
    path = folder / f"rapo_3b-{number}.out"
    return path.read_text() if path.exists() else ""


def wait_for_step(cluster: Cluster, folder: Path, number: str, step: int) -> None:
    def reached() -> bool:
        assert cluster.job(number)["JobState"] in ("PENDING", "RUNNING"), output(folder, number)
        return (folder / "run/metrics.jsonl").exists() and len(metrics(folder)) > step

    wait_until(reached, f"step {step}")


def wait_for_end(cluster: Cluster, folder: Path, number: str) -> dict[str, str]:
    wait_until(lambda: cluster.job(number)["JobState"] in ENDED, f"job {number} ends")
    return cluster.job(number)


def test_a_run_that_is_preempted_and_told_to_end_is_the_undisturbed_one(cluster: Cluster, tmp_path: Path) -> None:
    """It has more steps to do than it can, so that it never ends before it is told to; then two more."""
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    job = submit(cluster, disturbed, "--partition=graceful", steps=100_000)
    wait_for_step(cluster, disturbed, job, 1)
    cluster.preempt()
    cluster.start_again(job)
    saved = metrics(disturbed)[-1]["step"]
    wait_for_step(cluster, disturbed, job, saved + 1)
    cluster.call("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    cluster.wait_until_requeued(job)
    steps = metrics(disturbed)[-1]["step"] + 2
    set_steps(disturbed, steps)
    cluster.start_again(job)
    ended = wait_for_end(cluster, disturbed, job)

    said = output(disturbed, job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), said
    assert "told to end (SIGTERM)" in said and "told to end soon (SIGUSR1)" in said
    assert said.count("stopped with status 75, and requeued to go on") == 2
    assert f"on n[1-2], start 3: {disturbed / 'run'} --resume\n" in said

    job = submit(cluster, alone, steps=steps)
    assert wait_for_end(cluster, alone, job)["JobState"] == "COMPLETED", output(alone, job)
    assert same_run(disturbed, alone)


def test_without_notice_slurm_itself_requeues_it(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, RAPO_PYTHON=stand_in(tmp_path, "wait_for_signal"))
    wait_until(lambda: "process 1 waits" in output(tmp_path, job), "both processes are up")
    cluster.preempt()
    wait_until(lambda: "Slurm is ending the job" in output(tmp_path, job), "the script ends")
    cluster.start_again(job)
    wait_until(lambda: output(tmp_path, job).count("process 1 waits") == 2, "the second start")
    cluster.call("scancel", job)
    ended = wait_for_end(cluster, tmp_path, job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "1")  # both times it could have gone on
    assert output(tmp_path, job).count("stopped with status 75, and Slurm is ending the job") == 2
    assert "and requeued" not in output(tmp_path, job)
    assert f"start 2: {tmp_path / 'run'} --overwrite\n" in output(tmp_path, job)  # it had no checkpoint


@pytest.mark.parametrize(
    ("behaviour", "exit_code"),
    [("exit 0", "0:0"), ("exit $((SLURM_PROCID + 1))", "2:0"), ("sleep $SLURM_PROCID; kill -9 $$", "137:0")],
)
def test_what_ends_by_itself_is_not_requeued(cluster: Cluster, tmp_path: Path, behaviour: str, exit_code: str) -> None:
    job = submit(cluster, tmp_path, RAPO_PYTHON=stand_in(tmp_path, behaviour))
    ended = wait_for_end(cluster, tmp_path, job)
    assert (ended["ExitCode"], ended["Restarts"]) == (exit_code, "0"), output(tmp_path, job)


@pytest.mark.parametrize("on_usr1", ["-", "'exit $SLURM_PROCID'"])
def test_whatever_ends_after_a_notice_is_requeued(cluster: Cluster, tmp_path: Path, on_usr1: str) -> None:
    """Processes that are starting do not catch the signal; of those that do, one may miss the others."""
    python = stand_in(tmp_path, f"trap {on_usr1} USR1; wait_for_signal")
    job = submit(cluster, tmp_path, RAPO_PYTHON=python)
    wait_until(lambda: "process 1 waits" in output(tmp_path, job), "both processes are up")
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_until_requeued(job)
    cluster.call("scancel", job)
    status = 138 if on_usr1 == "-" else 1
    assert f"stopped with status {status}, and requeued to go on" in output(tmp_path, job)


def test_preempted_while_its_processes_start_it_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm tells the processes, which do not catch the signal yet, and not the script."""
    python = stand_in(tmp_path, "trap - TERM; wait_for_signal")
    job = submit(cluster, tmp_path, "--partition=graceful", RAPO_PYTHON=python)
    wait_until(lambda: "process 1 waits" in output(tmp_path, job), "both processes are up")
    cluster.preempt()
    cluster.wait_until_requeued(job)
    cluster.call("scancel", job)
    assert "stopped with status 143, and requeued to go on" in output(tmp_path, job)


def deaf_controller(folder: Path, *, times: int) -> str:
    """Return a PATH on which scontrol fails to show a job the first `times` times."""
    asked, scontrol = folder / "asked", folder / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f"""#!/bin/bash
if [[ "$1 $2" == "show job" && $(cat {asked} 2>/dev/null | wc -l) -lt {times} ]]; then
    echo >>{asked}
    exit 1
fi
exec {shutil.which("scontrol", path=PATH)} "$@"
"""
    )
    scontrol.chmod(0o755)
    return f"{scontrol.parent}:{PATH}"


def test_a_signal_counts_although_the_controller_does_not_say_preempted(cluster: Cluster, tmp_path: Path) -> None:
    """A job that Slurm has requeued already is pending. Its processes, or srun, were ended by the signal."""
    python, path = stand_in(tmp_path, "trap - TERM; wait_for_signal"), deaf_controller(tmp_path, times=1000)
    job = submit(cluster, tmp_path, RAPO_PYTHON=python, PATH=path)
    wait_until(lambda: "process 1 waits" in output(tmp_path, job), "both processes are up")
    cluster.preempt()
    ends = "stopped with status 143, and Slurm is ending the job (it does not answer)"
    wait_until(lambda: ends in output(tmp_path, job), "the script ends")
    cluster.call("scancel", job)
    assert "and requeued to go on" not in output(tmp_path, job)  # Slurm itself requeues it


def test_a_controller_that_does_not_answer_at_once_is_asked_again(cluster: Cluster, tmp_path: Path) -> None:
    """Ask again whether the job still runs: without an answer it would not be requeued."""
    path = deaf_controller(tmp_path, times=1)
    job = submit(cluster, tmp_path, RAPO_PYTHON=stand_in(tmp_path, "exit 75"), PATH=path)
    cluster.wait_until_requeued(job)
    cluster.call("scancel", job)
    assert (tmp_path / "asked").exists() and "stopped with status 75, and requeued to go on" in output(tmp_path, job)


def test_a_container_needs_pyxis(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, RAPO_CONTAINER="docker://nvcr.io/nvidia/pytorch:25.06-py3")
    assert wait_for_end(cluster, tmp_path, job)["ExitCode"] == "2:0"
    assert output(tmp_path, job) == (
        "error: RAPO_CONTAINER=docker://nvcr.io/nvidia/pytorch:25.06-py3: this cluster's srun has no --container-image "
        "(the pyxis plugin); unset RAPO_CONTAINER and export RAPO_PYTHON.\n"
    )


def stand_in(folder: Path, behaviour: str) -> Path:
    """A program in Python's place: the script's check of the packages succeeds, and training is `behaviour`."""
    program = folder / "python"
    program.write_text(
        f"""#!/bin/bash
[[ "$1" == - ]] && exit
trap 'exit 75' USR1 TERM
wait_for_signal() {{
    echo "process $SLURM_PROCID waits"
    while true; do sleep 0.1; done
}}
{behaviour}
"""
    )
    program.chmod(0o755)
    return program
