"""Check traces of the real profiler: of chosen steps, of failing steps, and of a step that Ctrl-C interrupts."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from megatron_rapo.profiling import Profiler
from tests.patience import HANG_S


def ranges(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (start, end) of all events of a trace, by name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event["ph"] == "X":
            found.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return found


def work(profiler: Profiler, step: int) -> None:
    with profiler.step(step):
        with profiler.phase("rollout"):
            torch.ones(2, 2) @ torch.ones(2, 2)
        with profiler.phase("train"), record_function("layers"):
            for _ in range(3):
                torch.ones(2, 2) @ torch.ones(2, 2)


def test_a_chosen_step_is_written_and_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    profiler = Profiler(tmp_path, {2}, rank=1)
    for step in (1, 2, 3):
        work(profiler, step)
        assert profiler.has_trace == (step == 2)
        profiler.write(said.append)
        assert not profiler.has_trace
    folder = tmp_path / "profile/step-000002"
    assert list((tmp_path / "profile").iterdir()) == [folder]
    assert said == [f"profile of step 2: {folder}; rank-*.txt lists what took longest"]
    found = ranges(folder / "rank-1.json.gz")
    [(start, end)], [rollout] = found["train"], found["rollout"]
    assert rollout[1] <= start
    assert sum(start <= ts and until <= end for ts, until in found["aten::mm"]) == 3 and len(found["aten::mm"]) == 4
    parts = (folder / "rank-1.txt").read_text().split("\n\n")
    assert [part.partition(":")[0] for part in parts] == ["rollout", "train"]
    assert [re.findall(r"(\d+)  aten::mm\n", part + "\n") for part in parts] == [["1"], ["3"]]


def test_a_step_that_fails_is_written_when_there_is_time(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, {1}, rank=0)
    with pytest.raises(ZeroDivisionError), profiler.step(1), profiler.phase("train"):
        torch.ones(2, 2) @ torch.ones(2, 2)
        raise ZeroDivisionError
    assert profiler.has_trace and not profiler.folder.exists()
    profiler.write(lambda _: None)
    assert {"train", "aten::mm"} <= ranges(tmp_path / "profile/step-000001/rank-0.json.gz").keys()


INTERRUPTED = """
import sys, time, torch
from pathlib import Path
from megatron_rapo.runtime import signals
from megatron_rapo.profiling import Profiler

signals.SAME_REQUEST_S = 3600.0  # however late the second one is looked at
signals.Signals(3600.0, closing_s=3600.0)
profiler = Profiler(Path(sys.argv[1]), {1}, rank=0)
try:
    with profiler.step(1), profiler.phase("train"):
        torch.ones(1)
        print("up", flush=True)
        time.sleep(3600)
finally:
    profiler.write(print)
"""


def test_ctrl_c_leaves_the_trace_of_the_step_that_it_ends(tmp_path: Path) -> None:
    """The signal comes twice: from the terminal, and from the launcher."""
    process: Any = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=-1, stderr=-1, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert "rank 0: interrupted; --resume goes on" in said and "KeyboardInterrupt\n" in said  # in either order
    assert {"train", "aten::ones"} <= ranges(tmp_path / "profile/step-000001/rank-0.json.gz").keys()
