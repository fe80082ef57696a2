"""Names of the files and folders of a run. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STEP_PREFIX = "step-"


def step_name(step: int) -> str:
    """Return the name of files and folders of `step`, such as `step-000042`. Names sort in the order of the steps."""
    return f"{STEP_PREFIX}{step:06d}"


def step_of(path: Path) -> int:
    """Return the step in a name made by `step_name`, with or without a suffix. Raises ValueError for other names."""
    return int(path.name.removeprefix(STEP_PREFIX).partition(".")[0])


class _Inside:
    """Attribute of a RunFolder: the path `name` inside the run's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """Names the files and folders of the run in the folder `path`. docs/run_folder.md describes their content."""

    path: Path

    metrics = _Inside("metrics.jsonl")  # a line per step; the first file of a run, so it marks a folder as a run's
    settings = _Inside("config.json")  # all current settings
    settings_history = _Inside("settings_history.jsonl")  # all settings since the first step
    machine = _Inside("machine.json")  # versions, devices and speed of the machine
    summary = _Inside("summary.json")  # scores, seconds and paths at the end
    lock = _Inside("run.lock")  # the process that is running in the folder, or was last
    report = _Inside("report.html")  # the page of the `report` command
    checkpoints = _Inside("checkpoints")  # checkpoints by step, and `latest` (checkpoints/folders.py names the files)
    hf = _Inside("hf")  # the final policy as a Hugging Face folder
    converted = _Inside("converted")  # evaluated checkpoints as Hugging Face folders, by the checkpoint's name
    converting_lock = _Inside("converted/.lock")  # held by an evaluation while it converts a checkpoint
    rollouts = _Inside("rollouts")  # completions token by token, a file per recorded step
    user_code = _Inside("user_code")  # sources of the user's own code, a folder per first step that uses them
    not_finite = _Inside("not_finite")  # micro-batches of skipped optimizer steps
    profile = _Inside("profile")  # traces of profiled steps, a folder per step
    tensorboard = _Inside("tensorboard")  # TensorBoard's event files
    wandb_run_id = _Inside("wandb_run_id")  # the run's id at Weights & Biases
    mlflow_run_id = _Inside("mlflow_run_id")  # the run's id in MLflow
    mlflow_database = _Inside("mlflow.db")  # MLflow's database of a run without a server
    mlflow_files = _Inside("mlflow")  # MLflow's artifacts of a run without a server

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder | None:
        """Return the run whose folder `checkpoints` contains this folder, or None."""
        run = cls(checkpoint.parent.parent)
        return run if run.checkpoints == checkpoint.parent else None

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step`."""
        return self.checkpoints / step_name(step)

    def export(self, step: int) -> Path:
        """Return the Hugging Face folder of the policy after `step`."""
        return self.path / "exports" / step_name(step)

    @property
    def evaluations(self) -> list[Path]:
        """Return the existing files with scores on held-out problems, in the order of their steps."""
        return sorted((self.path / "evaluations").glob(f"{STEP_PREFIX}*.json"))

    def evaluation(self, step: int) -> Path:
        """Return the file with the scores on held-out problems after `step`."""
        return self.path / "evaluations" / f"{step_name(step)}.json"

    def rollout(self, step: int) -> Path:
        """Return the file of the recorded completions of `step`."""
        return self.rollouts / f"{step_name(step)}.jsonl.gz"
