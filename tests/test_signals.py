"""A process that is told to end: once, twice at once, and again later."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from megatron_rapo.signals import SAME_REQUEST_S

_PROCESS = """
import time
from megatron_rapo.signals import Signals
Signals(30.0)
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_told_twice_at_once_it_goes_on_until_told_again(second: signal.Signals) -> None:
    """srun and Slurm's daemon both pass on that a job is to end."""
    process = subprocess.Popen([sys.executable, "-c", _PROCESS], stdout=-1, stderr=-1, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(second)
        time.sleep(SAME_REQUEST_S)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=10)
    finally:
        process.kill()
    told = "rank 0: told to end (SIGTERM), by the scheduler or because another process of this run has failed"
    assert output.splitlines() == [f"{told}; stops within 30 s.", f"{told}."]
    assert process.returncode == 128 + signal.SIGTERM
