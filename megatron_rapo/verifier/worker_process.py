"""Control one verifier process from the trainer: start, send, receive, kill. No call waits for an answer."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, cast

from megatron_rapo.verifier.worker_main import READY

START_TIMEOUT_S = 300.0
"""Deadline for the start of a worker, seconds. Imports are slow when many workers start from a network disk."""

Job = tuple[str, str]
"""The answer of a completion, and the reference answer."""

# We use neither fork (the trainer has threads that hold locks) nor multiprocessing's spawn (it imports the trainer's
# __main__ again). The child gets its parent's module search path.
_BOOTSTRAP = """
import json, sys
search_path, *limits = json.loads(sys.argv[1])
sys.path[:] = search_path
from megatron_rapo.verifier.worker_main import main
main(*limits)
"""


class WorkerDied(Exception):
    """The process has ended by itself or was killed."""


class WorkerLate(Exception):
    """The process has missed its deadline."""


class WorkerProcess:
    """One verifier process.

    Attributes:
        ready: whether it has finished its imports.
        job: the job that it is working on; None when idle or starting.
        deadline: the `time.monotonic()` by which it must be ready or have answered; infinity when idle.
    """

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        search_path = [os.path.abspath(folder) for folder in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _BOOTSTRAP, json.dumps([search_path, timeout_s, memory_bytes])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # read only if the start fails; the worker closes it when ready
            bufsize=0,
            start_new_session=True,  # Ctrl-C goes to the trainer alone, which then closes the pool
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy orders terms by hash; verdicts must be reproducible
        )
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        self._stdin, self._stdout, self._stderr = cast(tuple[IO[bytes], IO[bytes], IO[bytes]], pipes)
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
        """Return whether the worker is ready for the next job."""
        return self.ready and self.job is None

    def assign(self, job: Job) -> None:
        """Give the worker, which must be idle, its next job. The deadline starts now."""
        assert self.idle, "only an idle worker takes a job"
        self._unsent = json.dumps(job).encode() + b"\n"
        self.job = job
        self.deadline = time.monotonic() + self.timeout_s

    def poll(self) -> str | None:
        """Send and receive as much as the pipes allow. Return the job's outcome once it has arrived, else None.

        Raises WorkerDied or WorkerLate; then only `kill` may follow. The worker measures the time of each answer, so
        an answer that took too long is late however rarely `poll` is called.
        """
        try:
            if self._unsent:
                self._unsent = self._unsent[self._stdin.write(self._unsent) or 0 :]
            received = self._stdout.read(65536)  # None: nothing to read; empty: closed
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
        """End the process at once (SIGKILL). Return what it wrote to stderr."""
        self.job = None
        self._process.kill()
        self._process.wait()
        stderr = self._stderr.read(65536) or b""
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()
        return stderr.decode(errors="replace").strip()

    def register(self, selector: selectors.BaseSelector) -> None:
        """Make `selector` wake up when `poll` has something to do."""
        selector.register(self._stdout, selectors.EVENT_READ)
        if self._unsent:
            selector.register(self._stdin, selectors.EVENT_WRITE)


def wait_any(workers: Sequence[WorkerProcess], until: float) -> None:
    """Sleep until a worker can be read or written, a deadline passes, or `time.monotonic()` reaches `until`."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            worker.register(selector)
        until = min(until, *(worker.deadline for worker in workers))
        selector.select(None if until == float("inf") else max(0.0, until - time.monotonic()))
