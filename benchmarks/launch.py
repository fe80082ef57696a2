"""Processes that run a module of this repository, as users start training: several with torchrun."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.environment import child_environment

GRACE_S = 30.0  # that torchrun gives its processes
TAIL_CHARACTERS = 3000


def launch(module: str, arguments: Sequence[object], *, processes: int, threads: int, timeout_s: float) -> None:
    """Run `python -m module arguments...` on `processes` processes of `threads` threads each.

    Raises RuntimeError with the end of what they said where one fails, or where they take longer than `timeout_s`.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
    command = [sys.executable, *torchrun, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=child_environment(threads), stdout=said, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = f"none after {timeout_s:.0f} s"
        finally:
            _end(process)
        if status != 0:
            said.seek(0)
            raise RuntimeError(f"{module}, exit status {status}: ...{said.read()[-TAIL_CHARACTERS:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """torchrun ends its processes where it is asked to end, not where it is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S + 10)
        except subprocess.TimeoutExpired:
            process.kill()
