"""The names in a run's folder are fixed, because older runs and users' scripts have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_rapo.runtime.run_folder import RunFolder, step_name, step_of

NAMES = {
    "metrics": "metrics.jsonl",
    "settings": "config.json",
    "settings_history": "settings_history.jsonl",
    "machine": "machine.json",
    "summary": "summary.json",
    "lock": "run.lock",
    "report": "report.html",
    "checkpoints": "checkpoints",
    "hf": "hf",
    "converted": "converted",
    "converting_lock": "converted/.lock",
    "rollouts": "rollouts",
    "user_code": "user_code",
    "not_finite": "not_finite",
    "profile": "profile",
    "tensorboard": "tensorboard",
    "wandb_run_id": "wandb_run_id",
    "mlflow_run_id": "mlflow_run_id",
    "mlflow_database": "mlflow.db",
    "mlflow_files": "mlflow",
}
OF_A_STEP = {
    "checkpoint": "checkpoints/step-000042",
    "export": "exports/step-000042",
    "evaluation": "evaluations/step-000042.json",
    "rollout": "rollouts/step-000042.jsonl.gz",
}
DOCUMENT = Path(__file__).parents[2] / "docs/run_folder.md"


def test_the_names_on_disk() -> None:
    run = RunFolder(Path("runs/mine"))
    assert {name: getattr(run, name) for name in NAMES} == {name: run.path / path for name, path in NAMES.items()}
    assert {name: getattr(run, name)(42) for name in OF_A_STEP} == {n: run.path / p for n, p in OF_A_STEP.items()}


def test_every_name_is_pinned_here_and_documented() -> None:
    public = {name for name in vars(RunFolder) if not name.startswith("_")} - {"of_checkpoint", "evaluations"}
    assert public == NAMES.keys() | OF_A_STEP.keys()
    text = DOCUMENT.read_text()
    tops = {Path(path).parts[0] for path in (*NAMES.values(), *OF_A_STEP.values())}
    assert [name for name in sorted(tops) if f"`{name}`" not in text and f"`{name}/" not in text] == []


def test_a_name_holds_its_step() -> None:
    run = RunFolder(Path("run"))
    assert step_name(7) == "step-000007" and step_name(1234567) == "step-1234567"
    assert [step_of(path(7)) for path in (run.checkpoint, run.evaluation, run.rollout)] == [7, 7, 7]
    with pytest.raises(ValueError, match="invalid literal"):
        step_of(Path("step-final"))


def test_evaluations_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.evaluations == []
    for step in (100, 0, 20):
        run.evaluation(step).parent.mkdir(exist_ok=True)
        run.evaluation(step).touch()
    run.evaluation(20).with_suffix(".txt").touch()
    assert run.evaluations == [run.evaluation(step) for step in (0, 20, 100)]


@pytest.mark.parametrize(
    ("checkpoint", "run"),
    [
        ("runs/mine/checkpoints/step-000002", "runs/mine"),
        ("checkpoints/step-000002", "."),
        ("/checkpoints/copy", "/"),
        ("runs/mine/step-000002", None),
        ("step-000002", None),
        (".", None),
    ],
)
def test_the_run_of_a_checkpoint(checkpoint: str, run: str | None) -> None:
    assert RunFolder.of_checkpoint(Path(checkpoint)) == (RunFolder(Path(run)) if run else None)
