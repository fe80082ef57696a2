"""The trainer's side of one verifier process: start, send, receive, kill; no call waits for an answer."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any, cast

from megatron_rapo.verifier.worker_main import READY

START_TIMEOUT_S = 300.0
"""Longest start of a worker, seconds; the imports are slow where many start from a network disk."""

Job = tuple[str, str]
"""Content of an answer's box, and the reference answer."""

# Neither fork (the trainer has threads that hold locks) nor multiprocessing's spawn (which imports the
# trainer's __main__ again). The child finds modules where its parent does.
_BOOTSTRAP = """
import json, sys
search_path, *limits = json.loads(sys.argv[1])
sys.path[:] = search_path
from megatron_rapo.verifier.worker_main import main
main(*limits)
"""


class WorkerDied(Exception):
    """The process ended by itself, or something killed it."""


class WorkerLate(Exception):
    """The deadline passed."""


class WorkerProcess:
    """One verifier process.

    Attributes:
        ready: it has finished its imports.
        job: the answer that it judges; None when idle or starting.
        deadline: `time.monotonic()` by which it must be ready or have answered; infinity when idle.
    """

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        search_path = [os.path.abspath(folder) for folder in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _BOOTSTRAP, json.dumps([search_path, timeout_s, memory_bytes])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # read only where the start fails; the worker closes it when ready
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the trainer, which then closes the pool
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy orders terms by hash; verdicts must repeat
        )
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)
        self._unsent = b""
        self._received = b""
        self.timeout_s = timeout_s
        self.ready = False
        self.job: Job | None = None
        self.deadline = time.monotonic() + START_TIMEOUT_S

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Ready for the next answer."""
        return self.ready and self.job is None

    def assign(self, job: Job) -> None:
        """Send an idle worker its next answer; its deadline runs from now."""
        assert self.idle, "only an idle worker takes an answer"
        self._unsent = json.dumps(job).encode() + b"\n"
        self.job = job
        self.deadline = time.monotonic() + self.timeout_s

    def poll(self) -> str | None:
        """Move what the pipes take and give; the outcome of the job, once it is there.

        Raises WorkerDied and WorkerLate, after which there is only `kill`. What took longer than the deadline is late
        however seldom this is called.
        """
        try:
            if self._unsent:
                self._unsent = self._unsent[self._stdin.write(self._unsent) or 0 :]
            received = self._stdout.read(65536)  # None: nothing there; empty: closed
        except BrokenPipeError:
            raise WorkerDied from None
        if received == b"":
            raise WorkerDied
        self._received += received or b""
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            if time.monotonic() >= self.deadline:
                raise WorkerLate
            return None
        self._received, message = rest, json.loads(line)
        self.deadline = float("inf")
        if not self.ready:
            assert message == READY, f"a worker's first message is {message!r}"
            self.ready = True
            return None
        outcome, seconds = message
        if seconds > self.timeout_s:
            raise WorkerLate
        self.job = None
        return cast(str, outcome)

    def kill(self) -> str:
        """End the process at once (SIGKILL) and give back what it last wrote to stderr."""
        self.job = None
        self._process.kill()
        self._process.wait()
        said = self._stderr.read(65536) or b""
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()
        return said.decode(errors="replace").strip()

    def register(self, selector: selectors.BaseSelector) -> None:
        """Wake `selector` when `poll` has something to do."""
        selector.register(self._stdout, selectors.EVENT_READ)
        if self._unsent:
            selector.register(self._stdin, selectors.EVENT_WRITE)

    @property
    def _stdin(self) -> IO[bytes]:
        return cast(Any, self._process.stdin)

    @property
    def _stdout(self) -> IO[bytes]:
        return cast(Any, self._process.stdout)

    @property
    def _stderr(self) -> IO[bytes]:
        return cast(Any, self._process.stderr)


def wait_any(workers: Sequence[WorkerProcess], until: float) -> None:
    """Sleep until one of `workers` has something to say, a deadline passes or `time.monotonic()` is `until`."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            worker.register(selector)
        until = min(until, *(worker.deadline for worker in workers))
        selector.select(None if until == float("inf") else max(0.0, until - time.monotonic()))
