"""Tests with the real Weights & Biases and MLflow if installed, and of the message if not."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_rapo.errors import InputError
from megatron_rapo.monitor import Recorder, Sample, check_writers, writer_registry
from megatron_rapo.monitor.writer_registry import open_writer
from megatron_rapo.runtime.user_code import UserCodeError
from tests.patience import HANG_S

SAMPLE = Sample(prompt="1+1=", completion="\\boxed{2}", answer="2", reward=1.0)
SCALARS = {"reward/mean": 0.25, "eval/pass@1": 0.5}
HISTOGRAMS = {"histogram/reward": [0.0, 0.0, 1.0], "histogram/log_rho": []}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_fix(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also if there is a folder with the package's name, as wandb creates in the current folder."""
    monkeypatch.setitem(writer_registry.PACKAGES, name, f"{name}_that_nobody_has")
    (tmp_path / f"{name}_that_nobody_has").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as refused:
        check_writers(["tensorboard", name])
    assert str(refused.value) == (
        f"monitor.writers=['tensorboard', '{name}']: the package {name}_that_nobody_has is not installed; "
        f"pip install {name}_that_nobody_has, or leave {name} out."
    )


def test_what_is_installed_is_not_refused() -> None:
    check_writers(["tensorboard"])
    check_writers([])


@pytest.mark.parametrize("name", ["tensorbord", "Mlflow", ""])
def test_an_unknown_writer_is_refused(name: str, tmp_path: Path) -> None:
    for call in (lambda: check_writers([name]), lambda: open_writer(name, tmp_path, {}, first_step=0)):
        with pytest.raises(InputError) as refused:
            call()
        assert str(refused.value) == (
            f"monitor.writers: {name!r}: no such writer; use tensorboard, wandb, mlflow, or your own as MODULE:NAME or "
            "FILE.py:NAME (docs/extending.md)."
        )
    assert not any(tmp_path.iterdir())


OWN = """
class Rows:
    def __init__(self, folder, settings, first_step):
        self.path = folder / "rows.txt"
        self.write(first_step, settings["run"], (), {})

    def write(self, step, scalars, samples, histograms):
        with self.path.open("a") as file:
            print(step, sorted(scalars), len(samples), sorted(histograms), file=file)

    def close(self):
        self.write(-1, {}, (), {})

class Unclosed:
    def __init__(self, folder, settings, first_step): pass
    def write(self, step, scalars, samples, histograms): pass

class Narrow(Unclosed):
    def write(self, step): pass
    def close(self): pass

def make(folder, settings, first_step): return Rows(folder, settings, first_step)
def nothing(folder, settings, first_step): return None
def late(folder): return None
"""


@pytest.mark.parametrize("name", ["Rows", "make"])
@pytest.mark.parametrize("by", ["file", "module"])
def test_a_writer_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, by: str) -> None:
    (tmp_path / "writers_of_ones_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    where = tmp_path / "writers_of_ones_own.py" if by == "file" else "writers_of_ones_own"
    check_writers([f"{where}:{name}"])
    with Recorder(tmp_path / "run", writers=[f"{where}:{name}"], settings={"run": {"steps": 3}}) as recorder:
        recorder.log(1, SCALARS, [SAMPLE], HISTOGRAMS)
    assert (tmp_path / "run/rows.txt").read_text().splitlines() == [
        "0 ['steps'] 0 []",
        "1 ['eval/pass@1', 'reward/mean'] 1 ['histogram/log_rho', 'histogram/reward']",
        "-1 [] 0 []",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Unclosed", ": has no method 'close'; give it write and close."),
        ("Narrow", ": write: cannot be called with (self, step, scalars, samples, histograms): too many positional "),
        ("late", ": cannot be called with (folder, settings, first_step): too many positional arguments; give it "),
        ("missing", ": has no 'missing'; use one of its functions: make, nothing, late."),
    ],
)
def test_a_writer_of_ones_own_that_is_none(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    with pytest.raises(UserCodeError) as refused:
        check_writers([f"{path}:{name}"])
    assert str(refused.value).startswith(f"monitor.writers='{path}:{name}'{said}")


def test_a_function_that_makes_no_writer(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    with pytest.raises(InputError, match="has no method 'write'; give it write and close"):
        Recorder(tmp_path / "run", writers=[f"{path}:nothing"])


class Unreachable:
    """A writer whose service does not answer from the second step on."""

    def __init__(self, error: Exception) -> None:
        self.steps, self.error = [], error

    def write(self, step: int, *what: object) -> None:
        self.steps.append(step)
        if step > 1:
            raise self.error

    def close(self) -> None:
        raise AssertionError("left out already")


def test_a_service_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    service = Unreachable(ConnectionError("no route"))
    with Recorder(tmp_path, writers=["tensorboard"], warn=said.append) as recorder:
        recorder._writers["mlflow"] = service
        for step in (1, 2, 3):
            recorder.log(step, {"reward/mean": 0.5})
    assert service.steps == [1, 2]
    assert said == ["WARNING: mlflow failed and gets nothing more of this run (ConnectionError: no route)"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_service_that_cannot_start_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This comes before anything expensive. It also covers a package that is installed but broken."""
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no api key')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delitem(sys.modules, "megatron_rapo.monitor.wandb_writer", raising=False)
    with pytest.raises(InputError) as refused:
        Recorder(tmp_path / "run", writers=["wandb"])
    assert str(refused.value) == (
        "monitor.writers: wandb cannot start (RuntimeError: no api key); fix this, or leave wandb out."
    )


def test_a_disk_that_fails_tensorboard_ends_the_run(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder._writers["tensorboard"] = Unreachable(OSError(28, "No space left on device"))
    recorder.log(1, {"reward/mean": 0.5})
    with pytest.raises(OSError, match="No space left"):
        recorder.log(2, {"reward/mean": 0.5})


def log_three_steps(folder: Path, name: str) -> None:
    """Log two steps, then resume after the first."""
    settings = {"run": {"folder": str(folder), "steps": 3}, "evaluation": None}
    with Recorder(folder, writers=[name], settings=settings) as recorder:
        recorder.log(1, SCALARS, [SAMPLE], HISTOGRAMS)
        recorder.log(2, {"reward/mean": 0.5})
    with Recorder(folder, writers=[name], settings=settings, resume_step=1) as recorder:
        recorder.log(2, {"reward/mean": 0.75, "policy/kl": np.nan})


def test_mlflow_has_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    log_three_steps(tmp_path / "run", "mlflow")
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("megatron_rapo").experiment_id])
    assert run.info.run_id == (tmp_path / "run/mlflow_run_id").read_text().strip()
    assert run.info.status == "FINISHED" and run.data.params["run.steps"] == "3"
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.25), (2, 0.5), (2, 0.75)]
    assert run.data.metrics["eval/pass_at_1"] == 0.5
    [sample] = client.list_artifacts(run.info.run_id, "samples")
    assert sample.path == "samples/step-000001-0.md"


def test_wandb_has_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (spec := importlib.util.find_spec("wandb")) is None or spec.origin is None:
        pytest.skip("wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_three_steps(tmp_path / "run", "wandb")
    expected, deadline = [(1, 0.25), (2, 0.5), (2, 0.75)], time.monotonic() + HANG_S
    while wandb_rows(tmp_path / "run") != expected and time.monotonic() < deadline:
        time.sleep(0.1)  # another process of wandb's writes the files, not always before finish() returns
    assert wandb_rows(tmp_path / "run") == expected
    assert len((tmp_path / "run/wandb_run_id").read_text().strip()) == 12


def wandb_rows(folder: Path) -> list[tuple[int, float]]:
    """Return (step, reward) of each row in the files that wandb has yet to send."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows: list[tuple[int, float]] = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in log_records(path.read_bytes()):
            items = Record.FromString(content).history.item
            row = {(item.key or "/".join(item.nested_key)): item.value_json for item in items}
            if "reward/mean" in row:
                rows.append((json.loads(row["step"]), json.loads(row["reward/mean"])))
    return rows


def log_records(content: bytes) -> Iterator[bytes]:
    """Yield records of LevelDB's log format: 7 bytes, then blocks of 32 KiB of (crc, length, type) and bytes."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
