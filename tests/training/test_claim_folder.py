"""Check which run folders a new run takes, empties or refuses. In a world of one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.training import claim_folder
from megatron_rapo.training.claim_folder import RunLock, claim
from tests.runs import tiny_config
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model", tied=True)


@pytest.fixture
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def earlier_run(folder: Path) -> Path:
    """Make the folder of a run that has taken a few steps."""
    config = tiny_config(Path("model"), folder)
    folder.mkdir(parents=True)
    RunFolder(folder).settings.write_text(config.to_json() + "\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "checkpoints").mkdir()
    return folder


def config_for(folder: Path, **sections: dict[str, Any]) -> Config:
    """Return a configuration whose other paths are outside of the run folder."""
    elsewhere = folder.parent / "elsewhere"
    return tiny_config(elsewhere / "model", elsewhere, run={"folder": folder}, **sections)


def refusal(config: Config, *, overwrite: bool) -> str:
    with pytest.raises(ConfigError) as refused:
        claim(config, overwrite=overwrite)
    return str(refused.value)


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_an_empty_folder_is_taken(tmp_path: Path, overwrite: bool, exists: bool) -> None:
    folder = tmp_path / "deep" / "run"
    if exists:
        folder.mkdir(parents=True)
    with claim(config_for(folder), overwrite=overwrite):
        pass
    assert folder.is_dir() and [path.name for path in folder.iterdir()] == ["run.lock"]


@pytest.mark.usefixtures("world_of_one")
def test_a_folder_that_cannot_be_written(model: Path) -> None:
    config = config_for(Path("/sys/run"))
    said = r"^run.folder=/sys/run: it cannot be written to \(.*(permitted|denied|Read-only).*\); name a folder that can"
    with pytest.raises(ConfigError, match=said):
        claim(config, overwrite=False)


@pytest.mark.usefixtures("world_of_one")
def test_an_earlier_run_is_kept(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "run")
    before = set(folder.rglob("*"))
    assert refusal(config_for(folder), overwrite=False) == (
        f"run.folder={folder}: holds an earlier run, which would be lost; pass --resume to go on with it, --overwrite "
        "to delete it, or name another folder."
    )
    assert set(folder.rglob("*")) == before


@pytest.mark.usefixtures("world_of_one")
def test_an_earlier_run_is_deleted(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "run")
    (tmp_path / "beside").touch()
    claim(config_for(folder), overwrite=True)
    assert folder.is_dir() and [path.name for path in folder.iterdir()] == ["run.lock"]
    assert (tmp_path / "beside").exists()


@pytest.mark.usefixtures("world_of_one")
def test_what_no_run_made_is_not_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    words = f"run.folder={folder}: has no metrics.jsonl, so no run made it; it is not deleted, name another folder."
    assert refusal(config_for(folder), overwrite=True) == words
    assert (folder / "thesis.tex").exists()


@pytest.mark.usefixtures("world_of_one")
def test_a_model_folder_is_not_an_earlier_run(tmp_path: Path, model: Path) -> None:
    """A Hugging Face folder also has a config.json. This one is not the run's model.path."""
    folder = tmp_path / "another"
    shutil.copytree(model, folder)
    assert "not deleted, name another folder" in refusal(config_for(folder), overwrite=True)
    assert (folder / "model.safetensors").exists()


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize(
    ("setting", "sections"),
    [
        ("model.path", {"model": {"path": "hf"}}),
        ("data.train", {"data": {"train": "data/train.jsonl"}}),
        ("evaluation.data", {"evaluation": {"data": "held.jsonl"}}),
    ],
)
def test_what_the_run_needs_is_not_deleted(tmp_path: Path, setting: str, sections: dict[str, dict[str, str]]) -> None:
    folder = earlier_run(tmp_path / "run")
    inside = {name: {key: folder / path for key, path in fields.items()} for name, fields in sections.items()}
    message = f"run.folder={folder}: holds {setting}, which --overwrite would delete; name another folder."
    assert refusal(config_for(folder, **inside), overwrite=True) == message
    assert (folder / "metrics.jsonl").exists()


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("inside", [".", "checkpoints"])
def test_the_current_folder_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    folder = earlier_run(tmp_path / "run")
    monkeypatch.chdir(folder / inside)
    assert "holds the current folder, which --overwrite would delete" in refusal(config_for(folder), overwrite=True)
    assert (folder / "metrics.jsonl").exists()


@pytest.mark.usefixtures("world_of_one")
def test_a_path_through_a_link_is_seen_through(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(folder)
    config = config_for(folder, data={"train": tmp_path / "link" / "train.jsonl"})
    assert "holds data.train, which --overwrite would delete" in refusal(config, overwrite=True)


@pytest.mark.usefixtures("world_of_one")
def test_a_neighbour_with_a_longer_name_is_not_inside(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "run")
    claim(config_for(folder, data={"train": tmp_path / "run2" / "train.jsonl"}), overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["run.lock"]


# --- one run at a time ---

HOLD = """
import sys
from pathlib import Path
from megatron_rapo.training.claim_folder import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("world_of_one")
def test_a_folder_in_which_a_run_is_is_refused_until_that_is_gone(tmp_path: Path) -> None:
    """--resume and --overwrite are refused and delete nothing. A killed run leaves no lock behind."""
    folder = earlier_run(tmp_path / "run")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes)
    try:
        assert held.stdout and held.stdout.readline() == "held\n"
        before = set(folder.rglob("*"))
        for resume in (True, False):
            with pytest.raises(ConfigError) as refused:
                claim(config_for(folder), resume=resume, overwrite=not resume)
            assert re.fullmatch(
                rf"run\.folder={folder}: another run \(process {held.pid} on {re.escape(socket.gethostname())}, since "
                r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\) is running in it; wait for its end, stop it, or "
                r"name another folder\.",
                str(refused.value),
            )
        assert set(folder.rglob("*")) == before
        held.send_signal(signal.SIGKILL)
        held.wait()
    finally:
        held.kill()
        held.communicate()
    with claim(config_for(folder), resume=True, overwrite=False):
        assert set(folder.rglob("*")) == before
        assert json.loads(RunFolder(folder).lock.read_text())["pid"] == os.getpid()
    with claim(config_for(folder), overwrite=True):
        assert [path.name for path in folder.iterdir()] == ["run.lock"]


def test_a_lock_that_says_nothing_is_one(tmp_path: Path) -> None:
    """A run that has just taken the lock may not have written its name yet."""
    with RunLock(tmp_path):
        RunFolder(tmp_path).lock.write_text("")
        with pytest.raises(ConfigError, match=r": another run is running in it; wait for its end,"):
            RunLock(tmp_path)


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claim_folder.fcntl, "flock", without)
    with RunLock(tmp_path):
        assert json.loads(RunFolder(tmp_path).lock.read_text())["host"] == socket.gethostname()
    assert capsys.readouterr().err == (
        f"WARNING: run.folder={tmp_path}: its file system has no locks (Function not implemented); a second run in it "
        "would not be noticed\n"
    )
