"""A process gets a stop signal: once, twice at once, and again later."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.patience import HANG_S

_PROCESS = """
import sys
from megatron_rapo.runtime import signals

class Telling(signals.Signals):
    def _handle(self, number):
        super()._handle(number)
        print(number.name, flush=True)

signals.SAME_REQUEST_S = 3600.0  # however late a signal is looked at
Telling(3600.0)
print("up", flush=True)
sys.stdin.readline()
signals.SAME_REQUEST_S = 0.0  # and now it is later
print("later", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_told_twice_at_once_it_goes_on_until_told_again(second: signal.Signals) -> None:
    """srun and Slurm's daemon both forward the signal to a job."""
    process = subprocess.Popen([sys.executable, "-c", _PROCESS], stdin=-1, stdout=-1, stderr=-1, text=True)
    try:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for sent in (signal.SIGTERM, second):
            process.send_signal(sent)
            assert process.stdout.readline() == f"{sent.name}\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "later\n"
        process.send_signal(signal.SIGTERM)
        process.wait(HANG_S)
        assert process.stderr is not None
        output = process.stderr.read()
    finally:
        process.kill()
    told = "rank 0: told to end (SIGTERM), by the scheduler or because another process of this run has failed"
    assert output.splitlines() == [f"{told}; stops within 3600 s.", f"{told}."]
    assert process.returncode == 128 + signal.SIGTERM
