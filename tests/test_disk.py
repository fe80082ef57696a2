"""Disks that are full, or that nobody may write to, under the whole loop and under conversions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_rapo.checkpoints.folders import latest_checkpoint
from megatron_rapo.checkpoints.manifest import Manifest
from tests.patience import HANG_S
from tests.short_runs import ROOT, kill_tree, start
from tests.small_disk import small_disk

CONVERT = (sys.executable, "-m", "megatron_rapo", "convert")


def test_a_disk_that_is_full_ends_the_run_and_takes_nothing_with_it(tmp_path: Path) -> None:
    """Room for two checkpoints of 12 MB each."""
    with small_disk(tmp_path / "disk", 30) as disk:
        settings = ("--set", f"run.folder={disk.path / 'run'}", "--set", "checkpoint.hf_every=0")
        settings += ("--set", "checkpoint.async_save=false")  # else the next line of metrics may be what fails first
        process = start(tmp_path, *settings, steps=5, prefix=disk.enter)
        try:
            output, _ = process.communicate(timeout=HANG_S)
        finally:
            kill_tree(process)
        assert process.returncode != 0 and "CheckpointError" not in output, output  # no traceback of ours
        said = f"error: {disk.path}/run/checkpoints/step-000003.partial: the checkpoint could not be saved: the disk is"
        assert f"{said} full (No space left on device; 0.0" in output, output
        assert "Exception in thread" not in output, output
        assert "make room on it. Those before it are untouched, and --resume goes on from the latest." in output
        checkpoints = disk.outside / "run/checkpoints"
        assert {path.name for path in checkpoints.iterdir()} == {"latest", "step-000001", "step-000002"}
        newest = latest_checkpoint(checkpoints)
        assert newest.name == "step-000002"
        manifest = Manifest(newest)
        manifest.verify(manifest.files)


RECORD = """
import sys
from pathlib import Path
from megatron_rapo.monitor import Recorder, Sample
sample = Sample(prompt="1+1=", completion="2" * 5000, answer="2", reward=1.0)
with Recorder(Path(sys.argv[1]), writers=["tensorboard"]) as recorder:
    for step in range(10_000):
        recorder.log(step, {"reward/mean": 0.5}, [sample])
"""


def test_tensorboard_on_a_full_disk_says_nothing_of_its_own(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        command = [*disk.enter, sys.executable, "-c", RECORD, str(disk.path)]
        full = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert full.returncode == 1 and full.stderr.endswith("OSError: [Errno 28] No space left on device\n")
    assert full.stderr.startswith("Traceback (most recent call last)") and "in log" in full.stderr
    assert "Exception in thread" not in full.stderr and "Exception ignored" not in full.stderr


def test_a_disk_without_room_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 10) as disk:
        settings = ("--set", f"run.folder={disk.path / 'run'}", "--set", "parallel.tensor=1")
        process = start(tmp_path, *settings, prefix=disk.enter, nproc=1)
        output, _ = process.communicate(timeout=HANG_S)
    assert f"error: run.folder={disk.path}/run: its disk has 0.01 GB free, but two checkpoints of" in output
    assert "this model take 0.02 GB, its export as a Hugging Face folder 0.00; make room, or name a folder on" in output
    assert "starting Megatron" not in output


def test_a_conversion_goes_on_when_there_is_room(tmp_path: Path) -> None:
    model = ROOT / "examples/tiny/model"
    with small_disk(tmp_path / "disk", 2) as disk:
        command = [*disk.enter, *CONVERT, "hf-to-megatron", str(model), str(disk.path / "out"), "--pipeline", "2"]
        full = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
        assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
        assert full.stderr.startswith(f"error: {disk.path}/out: could not be written: the disk is full (")
        assert not (disk.outside / "out").exists()
        disk.remount("size=20m")
        subprocess.run(command, capture_output=True, timeout=HANG_S, check=True)
        verify = [*disk.enter, *CONVERT, "verify", str(model), str(disk.path / "out")]
        subprocess.run(verify, capture_output=True, timeout=HANG_S, check=True)
        disk.remount("ro")
        again = [*command[:-3], str(disk.path / "other")]
        refused = subprocess.run(again, capture_output=True, text=True, timeout=HANG_S)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"error: {disk.path}/other: could not be written: it cannot be written to (Read-only file system); name a "
            "folder that can.\n"
        )
