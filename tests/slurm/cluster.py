"""Slurm with two nodes on this machine's loopback, for as long as a test needs it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.patience import HANG_S

DAEMONS = ("munged", "slurmctld", "slurmd")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")  # in JobState
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # other tests' own
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # where daemons are, and not everybody looks
_CONFIG = """
# No test is to depend on Slurm's clocks: they run out only where something hangs.
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
MpiDefault=none
KillWait={patience}
UnkillableStepTimeout={patience}
BatchStartTimeout={patience}
MessageTimeout=300
TCPTimeout=300
SlurmdTimeout={patience}
MinJobAge={patience}
ReturnToService=2
SlurmdParameters=config_overrides
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=sudden Nodes=ALL Default=YES PriorityTier=1
PartitionName=graceful Nodes=ALL PriorityTier=1 GraceTime={patience}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What keeps Slurm from being started here; None if nothing does."""
    missing = [daemon for daemon in DAEMONS if shutil.which(daemon, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed; on Debian and Ubuntu: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root, and this is another user"


class Cluster:
    """Slurm's commands, said to the cluster whose configuration is in `folder`."""

    def __init__(self, folder: Path) -> None:
        mine = {name: value for name, value in os.environ.items() if name not in LAUNCHER}  # jobs would inherit them
        self._environment = mine | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def call(self, *command: object, **variables: object) -> str:
        """The output of a command that must succeed; `variables` add to its environment."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self._environment | {name: str(value) for name, value in variables.items()},
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode, ..."""
        fields = self.call("scontrol", "show", "job", "--oneliner", number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def preempt(self) -> None:
        """Have a job of higher priority take both nodes, and end at once."""
        self.call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")

    def wait_until_requeued(self, number: str) -> None:
        """Until a job that has run waits again, as one does for two minutes; an AssertionError if it ends instead."""

        def requeued() -> bool:
            job = self.job(number)
            assert job["JobState"] not in ENDED, job
            return job["JobState"] == "PENDING" and job["Restarts"] != "0"

        wait_until(requeued, f"job {number} is requeued")

    def start_again(self, number: str) -> None:
        """Soon, a job that was requeued, which would wait two minutes by itself.

        Not in the second of its end: a node refuses what was granted before it was told to end a job, to the second.
        """
        self.wait_until_requeued(number)
        self.call("scontrol", "update", f"JobId={number}", "StartTime=now+2")


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster of the nodes n1 and n2, stopped with all of its jobs in the end.

    The partition `sudden` is pre-empted as Slurm does it by default, `graceful` with notice, by `high`.
    """
    with ExitStack() as stack:
        # Not pytest's own folder: a socket's path is at most 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        first_job = random.randrange(1000, 60_000)  # by which jobs choose a port
        (folder / "slurm.conf").write_text(
            _CONFIG.format(folder=folder, host=host, ports=_free_ports(3), first_job=first_job, patience=int(HANG_S))
        )
        munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
        munge |= {"seed-file": "munge.seed", "log-file": "munge.log"}
        options = [f"--{name}={folder / file}" for name, file in munge.items()]
        stack.enter_context(_daemon(folder, "munged", "--foreground", "--force", *options))
        wait_until((folder / "munge.socket").exists, "munged is up")
        for command in (("slurmctld", "-D"), ("slurmd", "-D", "-N", "n1"), ("slurmd", "-D", "-N", "n2")):
            stack.enter_context(_daemon(folder, *command))
        cluster = Cluster(folder)
        idle = "n1 idle\nn2 idle"
        wait_until(lambda: _nodes(cluster) == idle, "both nodes are idle")
        try:
            yield cluster
        finally:
            cluster.call("scancel", "--user=root")
            wait_until(lambda: _nodes(cluster) == idle, "all jobs have ended")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {HANG_S:g} s: {what}"
        time.sleep(0.2)


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[None]:
    """In the foreground, so that it is ours to end; with its log in `folder`."""
    with (folder / f"{Path(command[-1]).name}.log").open("w") as log:
        process = subprocess.Popen(
            [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _nodes(cluster: Cluster) -> str:
    try:
        return cluster.call("sinfo", "--noheader", "--Node", "--partition=high", "--format=%N %T")
    except AssertionError:  # the controller does not answer yet
        return ""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
