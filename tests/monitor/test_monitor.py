"""Tests of the seconds by phase over a whole run."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from megatron_rapo.monitor import Monitor, monitor, timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by one that shows its only element. The process was started 4 s before."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(monitor, "process_age_s", lambda: now[0] - 96.0)
    return now


def test_seconds_add_up_to_the_age_of_the_process(clock: list[float]) -> None:
    run = Monitor()
    clock[0] += 0.5
    run.launched()
    clock[0] += 0.25  # in no phase
    with run.phase("train"):
        clock[0] += 2.0
    run.begin_step()
    with run.phase("train"):
        clock[0] += 1.0
    clock[0] += 0.125  # nor this
    assert run.seconds() == {"launch": 4.5, "train": 3.0, "other": 0.375}


def test_seconds_of_a_run_are_those_of_all_its_processes(clock: list[float]) -> None:
    first = Monitor()
    first.launched()
    with first.phase("train"):
        clock[0] += 2.0
    clock[0] += 0.5
    second = Monitor()
    second.load_state_dict(first.state_dict())
    second.launched()
    with second.phase("restore"):
        clock[0] += 1.0
    clock[0] += 0.25
    assert second.seconds() == {"launch": 10.5, "train": 2.0, "other": 0.75, "restore": 1.0}
    assert second.state_dict() == {"seconds": second.seconds()}


def test_the_age_of_a_process() -> None:
    """The child sleeps 0.5 s before it measures. This process sees when the child starts and ends."""
    script = f"import sys, time; time.sleep(0.5); from {timing.__name__} import process_age_s; print(process_age_s())"
    started = time.monotonic()
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.5 <= float(run.stdout) <= time.monotonic() - started + 0.01  # a clock tick
