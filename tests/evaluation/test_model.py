import json
import shutil

import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.convert.files import ConversionError
from megatron_rapo.evaluation import model as of_model
from megatron_rapo.evaluation.model import ORIGIN, EvaluatedModel


@pytest.fixture
def run(tmp_path):
    """Make a run with checkpoints of steps 2 and 10, with only the files that are looked at."""
    folder = tmp_path / "run"
    for step in (2, 10):
        checkpoint = folder / f"checkpoints/step-{step:06d}"
        (checkpoint / "hf").mkdir(parents=True)
        (checkpoint / ".metadata").touch()
        (checkpoint / "manifest.json").write_text(json.dumps({"files": {"step": [[0, step, "3f"]]}}))
    (folder / "checkpoints/latest").write_text("step-000010\n")
    return folder


def test_a_hugging_face_folder(tmp_path):
    found = EvaluatedModel.find(tmp_path)
    assert (found.path, found.files, found.hf_folder, found.is_checkpoint) == (tmp_path, tmp_path, tmp_path, False)
    assert EvaluatedModel.find(tmp_path / "none").path == tmp_path / "none"  # its reader says what is missing


@pytest.mark.parametrize(("path", "step"), [(".", "step-000010"), ("checkpoints/step-000002", "step-000002")])
def test_a_run_and_a_checkpoint(run, path, step):
    found, checkpoint = EvaluatedModel.find(run / path), run / "checkpoints" / step
    assert (found.path, found.files, found.is_checkpoint) == (checkpoint, checkpoint / "hf", True)
    assert found.hf_folder == run.resolve() / "converted" / step


def refusal(path):
    with pytest.raises(ConfigError) as refused:
        EvaluatedModel.find(path)
    return str(refused.value)


def test_what_is_not_there(run):
    missing = run / "checkpoints/step-000003"
    assert refusal(missing) == f"model.path={missing}: no such checkpoint; there are step-000002, step-000010."
    (run / "checkpoints/latest").write_text("")
    assert EvaluatedModel.find(run).path == run / "checkpoints/step-000010"
    for step in ("step-000002", "step-000010"):
        shutil.rmtree(run / "checkpoints" / step)
    assert refusal(run) == (
        f"model.path={run}: a run without a complete checkpoint; wait for its first one, or name a Hugging Face folder."
    )


def test_a_checkpoint_of_no_run(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints/step-000002").rename(elsewhere)
    assert refusal(elsewhere) == (
        f"model.path={elsewhere}: a Megatron checkpoint, but not RUN/checkpoints/step-N of a run; convert it with "
        "megatron-rapo convert megatron-to-hf, and name the Hugging Face folder."
    )


def test_a_model_is_known_by_its_weights(run, tmp_path):
    for name, weights in (("one", b"abc"), ("copy", b"abc"), ("other", b"abd")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "config.json").write_text(name)
    one, copy, other = (EvaluatedModel.find(tmp_path / name).digest() for name in ("one", "copy", "other"))
    assert one == copy != other
    assert EvaluatedModel.find(run / "checkpoints/step-000002").digest() != EvaluatedModel.find(run).digest()


def test_a_folder_is_made_once_and_anew_for_another_checkpoint(run, monkeypatch):
    """The conversion is replaced here. tests/test_train.py runs the real one."""
    made = []

    def megatron_to_hf(source, target, **options):
        made.append(source.name)
        target.mkdir(parents=True)

    monkeypatch.setattr(of_model, "megatron_to_hf", megatron_to_hf)
    model = EvaluatedModel.find(run)
    model.prepare()
    model.prepare()
    assert made == ["step-000010"]
    (run / "converted/step-000010" / ORIGIN).unlink()  # as after a kill during conversion
    model.prepare()
    assert len(made) == 2
    (run / "checkpoints/step-000010/manifest.json").write_text(
        "{}"
    )  # the run resumed from an earlier step and wrote another checkpoint
    model.prepare()
    model.prepare()
    assert len(made) == 3


def test_a_run_that_cannot_be_written_to(run):
    (run / "converted").touch()
    with pytest.raises(ConversionError) as refused:
        EvaluatedModel.find(run).prepare()
    folder, checkpoint = run.resolve() / "converted/step-000010", run / "checkpoints/step-000010"
    assert str(refused.value).startswith(f"{folder}: could not be converted from {checkpoint}: [Errno 17] File exists")


def test_a_hugging_face_folder_is_left_alone(tmp_path):
    EvaluatedModel.find(tmp_path).prepare()
    assert not any(tmp_path.iterdir())
