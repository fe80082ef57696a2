"""Names of the files and folders of a run. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STEP_PREFIX = "step-"


def step_name(step: int) -> str:
    """Return the name of what belongs to `step`, say `step-000042`: names sort as the steps do."""
    return f"{STEP_PREFIX}{step:06d}"


def step_of(path: Path) -> int:
    """Return the step that a name of `step_name` stands for, with or without endings. Raises ValueError for others."""
    return int(path.name.removeprefix(STEP_PREFIX).partition(".")[0])


@dataclass(frozen=True)
class RunFolder:
    """The run in the folder `path`. It only names files; docs/run_folder.md says what is in them."""

    path: Path

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder | None:
        """Return the run whose `checkpoints` hold this folder; None where it lies elsewhere."""
        run = cls(checkpoint.parent.parent)
        return run if run.checkpoints == checkpoint.parent else None

    @property
    def metrics(self) -> Path:
        """A line for each step. A run has this file before any other, so it marks a folder as a run's."""
        return self.path / "metrics.jsonl"

    @property
    def settings(self) -> Path:
        """Every setting as it is now."""
        return self.path / "config.json"

    @property
    def settings_history(self) -> Path:
        """Every setting from the first step on."""
        return self.path / "settings_history.jsonl"

    @property
    def machine(self) -> Path:
        """Versions, devices and speed of the machine."""
        return self.path / "machine.json"

    @property
    def summary(self) -> Path:
        """Scores, seconds and places at the end."""
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        """Who is running in the folder, or was last."""
        return self.path / "run.lock"

    @property
    def report(self) -> Path:
        """The page that the `report` command writes."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints by step, and `latest`; checkpoints/folders.py names what is in it."""
        return self.path / "checkpoints"

    @property
    def hf(self) -> Path:
        """The policy at the end, as a Hugging Face folder."""
        return self.path / "hf"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint that is written after `step`."""
        return self.checkpoints / step_name(step)

    def export(self, step: int) -> Path:
        """Return the Hugging Face folder of the policy after `step`."""
        return self.path / "exports" / step_name(step)

    @property
    def converted(self) -> Path:
        """Checkpoints as Hugging Face folders, by the checkpoint's name, as far as they were evaluated."""
        return self.path / "converted"

    @property
    def converting_lock(self) -> Path:
        """Held by the evaluation that makes one of `converted`."""
        return self.converted / ".lock"

    @property
    def evaluations(self) -> list[Path]:
        """The scores on held-out problems that are there, in the order of their steps."""
        return sorted((self.path / "evaluations").glob(f"{STEP_PREFIX}*.json"))

    def evaluation(self, step: int) -> Path:
        """Return the file of the scores after `step`."""
        return self.path / "evaluations" / f"{step_name(step)}.json"

    @property
    def rollouts(self) -> Path:
        """Completions token by token, in a file for each step that is recorded."""
        return self.path / "rollouts"

    def rollout(self, step: int) -> Path:
        """Return the file of the recorded completions of `step`."""
        return self.rollouts / f"{step_name(step)}.jsonl.gz"

    @property
    def user_code(self) -> Path:
        """Sources of the user's own code, in a folder for each first step that uses them."""
        return self.path / "user_code"

    @property
    def not_finite(self) -> Path:
        """Micro-batches of skipped optimizer steps."""
        return self.path / "not_finite"

    @property
    def profile(self) -> Path:
        """Traces of profiled steps, in a folder for each step."""
        return self.path / "profile"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def wandb_run_id(self) -> Path:
        """The run's name at Weights & Biases."""
        return self.path / "wandb_run_id"

    @property
    def mlflow_run_id(self) -> Path:
        """The run's name in MLflow."""
        return self.path / "mlflow_run_id"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's database of a run without a server."""
        return self.path / "mlflow.db"

    @property
    def mlflow_files(self) -> Path:
        """MLflow's artifacts of a run without a server."""
        return self.path / "mlflow"
