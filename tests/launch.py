"""Starting a script on several processes of this machine, and saying what went wrong when it did.

A script is started the way users start training (torchrun), finds the environment that torchrun
sets, and may hand back a result: `write_result(...)` on one rank, returned by `run_distributed`. It
should end with `torch.distributed.destroy_process_group()`: gloo's threads may abort a process that
ends without ("terminate called without an active exception").
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.patience import HANG_S

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT_VARIABLE = "RAPO_TEST_RESULT"
TAIL_CHARACTERS = 6000


def write_result(result: dict[str, Any]) -> None:
    """Called by one rank of a launched script: what `run_distributed` returns (as JSON)."""
    Path(os.environ[RESULT_VARIABLE]).write_text(json.dumps(result))


def run_distributed(
    script: Path,
    nproc: int,
    *args: object,
    timeout_s: float = HANG_S,
    env: dict[str, str] | None = None,
) -> dict[str, Any] | None:
    """Run `script args...` on `nproc` processes under torchrun; return what it gave to `write_result`, or None.

    The script does nothing where its `__name__` is not `"__main__"`.

    Each process has one thread, the repository on its import path, and no network for Hugging Face
    libraries; `env` adds to that. Raises AssertionError with the end of the failing rank's output
    if a process fails, and with every rank's Python stack if `timeout_s` passes; no process is
    left behind either way.
    """
    with tempfile.TemporaryDirectory(prefix="rapo-test-") as folder:
        logs, result = Path(folder) / "logs", Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        command += ["--log-dir", str(logs), "--redirects=3", "--module", "tests.start", str(script), *map(str, args)]
        with open(Path(folder) / "torchrun.log", "w+") as torchrun_log:
            process = subprocess.Popen(
                command,
                env=_environment(result) | (env or {}),
                stdout=torchrun_log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
            try:
                status = process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                _dump_stacks(process)
                raise AssertionError(
                    f"{script.name} on {nproc} processes: still running after {timeout_s} s.\n{_tails(logs)}"
                ) from None
            finally:
                _kill_tree(process)
            if status != 0:
                torchrun_log.seek(0)
                summary = torchrun_log.read()
                raise AssertionError(
                    f"{script.name} on {nproc} processes: exit status {status}.\n"
                    f"{_tails(logs, _failed_rank(summary)) or summary[-TAIL_CHARACTERS:]}"
                )
        return json.loads(result.read_text()) if result.exists() else None


def _environment(result: Path) -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "PYTHONFAULTHANDLER": "1",  # a crash in C++, and our SIGABRT at the deadline, print Python's stack
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        RESULT_VARIABLE: str(result),
    }


def _failed_rank(summary: str) -> int | None:
    """The rank that failed first, from torchrun's closing report."""
    found = re.search(r"Root Cause.*?rank\s*:\s*(\d+)", summary, re.DOTALL)
    return int(found.group(1)) if found else None


def _tails(logs: Path, rank: int | None = None) -> str:
    """The end of the output of `rank`, or of every rank."""
    parts = []
    for stderr in sorted(logs.glob("*/attempt_0/*/stderr.log")):
        if rank is not None and stderr.parent.name != str(rank):
            continue
        for log in (stderr.with_name("stdout.log"), stderr):
            text = log.read_text(errors="replace") if log.exists() else ""
            if text.strip():
                parts.append(f"--- rank {stderr.parent.name}, {log.stem} ---\n{text[-TAIL_CHARACTERS:]}")
    return "\n".join(parts)


def _dump_stacks(process: subprocess.Popen[Any]) -> None:
    """Have every worker print its Python stack (and die); torchrun then ends by itself."""
    for worker in psutil.Process(process.pid).children(recursive=True):
        with _gone_is_fine():
            worker.send_signal(signal.SIGABRT)
    psutil.wait_procs(psutil.Process(process.pid).children(recursive=True), timeout=60)


def _kill_tree(process: subprocess.Popen[Any]) -> None:
    """torchrun gives every worker a session of its own, so killing its process group would miss them."""
    with _gone_is_fine():
        for descendant in psutil.Process(process.pid).children(recursive=True):
            with _gone_is_fine():
                descendant.kill()
    process.kill()
    process.wait()


def _gone_is_fine() -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(psutil.NoSuchProcess)
