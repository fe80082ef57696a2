"""Which folders TensorBoard is started with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_rapo.commands import tensorboard
from megatron_rapo.errors import InputError
from megatron_rapo.monitor import Recorder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of jobs, one by hand, one that TensorBoard was left out of."""
    folder = tmp_path / "runs"
    for name in ("rapo_7b-4711", "grpo_7b-4712", "mine"):
        Recorder(folder / name, writers=["tensorboard"]).close()
    Recorder(folder / "plain-4713").close()
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["4711"], ["--logdir", "{runs}/rapo_7b-4711/tensorboard"]),
        (["{runs}/mine"], ["--logdir", "{runs}/mine/tensorboard"]),
        (["{runs}/mine/tensorboard"], ["--logdir", "{runs}/mine/tensorboard"]),
        (
            ["4711", "{runs}/mine"],
            ["--logdir_spec", "rapo_7b-4711:{runs}/rapo_7b-4711/tensorboard,mine:{runs}/mine/tensorboard"],
        ),
    ],
)
def test_runs_are_found_by_folder_and_by_job(names: list[str], expected: list[str], runs: Path) -> None:
    started = tensorboard.command([name.format(runs=runs) for name in names], ["--port", "6007"], runs)
    assert started == [
        *(sys.executable, "-m", "tensorboard.main"),
        *(each.format(runs=runs) for each in expected),
        *("--port", "6007"),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("4700", "4700: no run of that job in {runs} (RAPO_RUNS); set RAPO_RUNS, or give the run's folder."),
        (
            "4713",
            "4713: {runs}/plain-4713/tensorboard is not there; name a run whose monitor.writers have tensorboard.",
        ),
        ("none", "none: no such folder; give a run's folder or the number of a job."),
        ("4712", "4712: {runs}/grpo_7b-4712, {runs}/other-4712 could be meant; name one of these folders."),
    ],
)
def test_refusals(name: str, said: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPO_RUNS", str(runs))
    (runs / "other-4712").mkdir()
    with pytest.raises(InputError) as refused:
        tensorboard.main([name, "--port", "1"])
    assert str(refused.value) == said.format(runs=runs)
