"""What `train` and `evaluate` refuse before they build anything. In a world of one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo import run
from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.config import Config, ConfigError
from megatron_rapo.data import DataError
from megatron_rapo.evaluation import evaluate
from megatron_rapo.evaluation.samples import ProblemSamples, Sample, SamplesError, SamplesFile
from megatron_rapo.evaluation.scores import Scores
from megatron_rapo.models import read_shape
from megatron_rapo.rollout.setup import resolved
from megatron_rapo.runtime.user_code import UserCodeError
from tests.runs import tiny_config
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model", tied=True)


# --- train(): refusals before any process group ---


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)

    def built(*arguments: object, **options: object) -> None:
        raise AssertionError("not refused in time")

    for command in (run, evaluate):
        monkeypatch.setattr(command, "init_process_group", built)
        monkeypatch.setattr(command, "Signals", lambda grace_s, closing_s=0.0: None)


def problems(path: Path, count: int) -> Path:
    rows = [{"problem": f"{i}+{i}=", "answer": str(2 * i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("alone")
def test_a_reward_function_that_does_not_load(tmp_path: Path, model: Path) -> None:
    function = {"name": "own", "function": "nowhere.py:f", "range": [0.0, 1.0]}
    config = tiny_config(model, tmp_path / "run", reward={"functions": [function]})
    with pytest.raises(UserCodeError, match=r"^reward\.functions\.0\.function='nowhere\.py:f': no such file "):
        run.train(config, resume=False, overwrite=False)


@pytest.mark.usefixtures("alone")
def test_a_divergence_that_does_not_load(tmp_path: Path, model: Path) -> None:
    config = tiny_config(model, tmp_path / "run", algorithm={"divergence": "nowhere.py:d"})
    with pytest.raises(UserCodeError, match=r"^algorithm\.divergence='nowhere\.py:d': no such file "):
        run.train(config, resume=False, overwrite=False)


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    """But where there is no run nothing begins, and where there are checkpoints one of them must be good."""
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from; start without --resume\.$"):
        run._newest_checkpoint(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints/step-000001.partial").mkdir(parents=True)
    assert run._newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints/latest").write_text("step-000001\n")
    with pytest.raises(CheckpointError):
        run._newest_checkpoint(tmp_path)


@pytest.mark.usefixtures("alone")
def test_a_model_folder_with_a_link_to_nothing(tmp_path: Path) -> None:
    """Refuse a link that the first save would fail on."""
    model = save_tiny_model(tmp_path / "model", tied=True)
    (model / "token_cache").mkdir()
    (model / "added_tokens.json").symlink_to("../blobs/1234")
    with pytest.raises(ConfigError) as refused:
        run.train(tiny_config(model, tmp_path / "run"), resume=False, overwrite=False)
    assert str(refused.value) == (
        f"model.path={model}: added_tokens.json is a link to ../blobs/1234, which cannot be read (No such file or "
        "directory), and every checkpoint has a copy of it; restore or remove it."
    )


@pytest.mark.parametrize(
    ("sections", "strings"),
    [
        ({}, []),
        ({"data": {"template": "abel"}}, ["Question:", "Answer:"]),
        ({"data": {"template": "abel"}, "rollout": {"stop": []}}, []),
        ({"rollout": {"stop": ["Q:", "<eos>"], "stop_token_ids": [7]}}, ["Q:", "<eos>"]),
    ],
)
def test_the_strings_that_stop_completions_are_written_out(
    model: Path, sections: dict[str, Any], strings: list[str]
) -> None:
    """So that what is saved with a run, and compared when it is resumed, does not depend on the template's own."""
    config, stops = resolved(tiny_config(model, Path("run"), **sections), read_shape(model))
    assert json.loads(config.to_json())["rollout"]["stop"] == strings == list(stops.strings)
    assert stops.token_ids == (1, 7)[: 1 + len(config.rollout.stop_token_ids)]


def test_another_text_in_the_file_of_a_template_is_seen(tmp_path: Path, model: Path) -> None:
    """Its digest is among the settings that are saved, and compared when a run is resumed."""
    path, shape, digests = tmp_path / "mine.toml", read_shape(model), []
    for text in ('before = "Q: "\nstop = ["Q:"]', 'before = "Q: "', 'before = "Q:\\n"'):
        path.write_text(text)
        config, _ = resolved(tiny_config(model, tmp_path, data={"template": str(path)}), shape)
        digests.append(config.data.template_digest)
    assert digests[0] == digests[1] != digests[2] and len(digests[2]) == 16
    again, _ = resolved(config, shape)
    assert again == config
    with pytest.raises(ConfigError) as refused:
        resolved(tiny_config(model, tmp_path, data={"template": str(path), "template_digest": digests[0]}), shape)
    assert str(refused.value) == (
        f"data.template_digest={digests[0]}: data.template={path} has {digests[2]}; give the file that the digest is "
        "of, or leave the digest out."
    )
    assert resolved(tiny_config(model, tmp_path), shape)[0].data.template_digest == ""


@pytest.mark.usefixtures("alone")
def test_a_stop_token_that_is_none_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError) as refused:
        run.train(tiny_config(model, tmp_path, rollout={"stop_token_ids": [128]}), resume=False, overwrite=False)
    assert str(refused.value) == (
        f"rollout.stop_token_ids=[128]: 128 is no token of {model}, which has 128 (ids 0 to 127); remove it."
    )


@pytest.mark.usefixtures("alone")
def test_more_prompts_in_a_step_than_problems(tmp_path: Path, model: Path) -> None:
    train = problems(tmp_path / "train.jsonl", 3)
    config = tiny_config(model, tmp_path / "run", data={"train": train}, batch={"prompts_per_step": 4})
    with pytest.raises(ConfigError) as refused:
        run.train(config, resume=False, overwrite=False)
    assert str(refused.value) == (
        f"batch.prompts_per_step=4: {train} has 3 problems, and with batch.dynamic_sampling_rounds=0 and "
        "batch.oversampled_prompts=0 one could be in a step twice; lower one of them."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "beyond", [{"dynamic_sampling_rounds": 2}, {"dynamic_sampling_rounds": 1, "oversampled_prompts": 4}]
)
def test_more_prompts_beyond_a_steps_than_problems(tmp_path: Path, model: Path, beyond: dict[str, int]) -> None:
    train = problems(tmp_path / "train.jsonl", 11)
    batch = {"prompts_per_step": 4, **beyond}
    with pytest.raises(ConfigError, match=r"has 11 problems, and with .* one could be in a step twice"):
        run.train(
            tiny_config(model, tmp_path / "run", data={"train": train}, batch=batch), resume=False, overwrite=False
        )


@pytest.mark.usefixtures("alone")
def test_a_step_to_profile_that_the_run_does_not_take(tmp_path: Path, model: Path) -> None:
    config = tiny_config(model, tmp_path / "run", data={"train": problems(tmp_path / "train.jsonl", 4)})
    with pytest.raises(ConfigError) as refused:
        run.train(config, resume=False, overwrite=False, profile=(3, config.run.steps + 1))
    last = config.run.steps
    assert str(refused.value) == f"--profile {last + 1}: this run takes steps 1 to {last}; name some of those."


@pytest.mark.usefixtures("alone")
def test_as_many_prompts_in_a_step_as_problems(tmp_path: Path, model: Path) -> None:
    train = problems(tmp_path / "train.jsonl", 4)
    config = tiny_config(model, tmp_path / "run", data={"train": train}, batch={"prompts_per_step": 4})
    with pytest.raises(AssertionError, match="not refused in time"):
        run.train(config, resume=False, overwrite=False)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"tensor": 2}, "rollout.tensor=2: does not divide the 1 processes; "),
        ({"max_completion_tokens": 2048}, "rollout.max_completion_tokens=2048: sequences of up to 2080 tokens, "),
    ],
)
def test_both_commands_check_the_engines(
    tmp_path: Path, model: Path, command: str, rollout: dict[str, int], words: str
) -> None:
    sections = {"rollout": rollout, "batch": {"tokens_per_microbatch": 4096}}
    config = tiny_config(model, tmp_path / "run", evaluation={"data": problems(tmp_path / "held.jsonl", 2)}, **sections)
    with pytest.raises(ConfigError) as refused:
        if command == "train":
            run.train(config, resume=False, overwrite=False)
        else:
            evaluate.evaluate_model(config, output=None)
    assert str(refused.value).startswith(words)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (
            "model",
            {"intermediate_size": 64},
            "{model}/model.safetensors: model.layers.0.mlp.gate_proj.weight has shape ",
        ),
        ("model", {"quantization_config": {"quant_method": "fp8"}}, "model.path={model}: config.json has a quantizat"),
        (
            "model",
            {"model_type": "none"},
            "model.path={model}: transformers, which reads config.json for the engine, ",
        ),
        ("rollout", {"kv_cache_mib": 2**24}, "rollout.kv_cache_mib=16777216: more than the "),
    ],
)
def test_both_commands_check_the_weights_and_the_memory(
    tmp_path: Path, model: Path, command: str, section: str, changes: dict[str, Any], words: str
) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    if section == "model":
        config_json = copy / "config.json"
        config_json.write_text(json.dumps(json.loads(config_json.read_text()) | changes))
    settings = {section: changes} if section == "rollout" else {}
    held = {"data": problems(tmp_path / "held.jsonl", 2), "max_completion_tokens": 48}
    config = tiny_config(copy, tmp_path / "run", evaluation=held, **settings)
    with pytest.raises(ConfigError) as refused:
        if command == "train":
            run.train(config, resume=False, overwrite=False)
        else:
            evaluate.evaluate_model(config, output=None)
    assert str(refused.value).startswith(words.format(model=copy))


# --- evaluate_model(): refusals before any process group, and what it does without an engine ---


def evaluation_config(folder: Path, model: Path, **settings: Any) -> Config:
    data = problems(folder / "held.jsonl", 2)
    defaults = {"data": data, "samples_per_problem": 4, "k": (1, 4), "max_completion_tokens": 48}
    return tiny_config(model, folder / "run", evaluation=defaults | settings)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "words"),
    [("a.json", "holds JSON lines; name a file that ends in .jsonl."), ("file/a.jsonl", "[Errno 17] File exists")],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, model: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SamplesError) as refused:
        evaluate.evaluate_model(evaluation_config(tmp_path, model), output=tmp_path / name)
    assert str(refused.value).startswith(f"--output {tmp_path / name}: {words}")


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    config = evaluation_config(tmp_path, tmp_path / "run/checkpoints/step-000001")
    with pytest.raises(ConfigError, match=r"step-000001: no such checkpoint; there is none yet\."):
        evaluate.evaluate_model(config, output=None)


@pytest.mark.usefixtures("alone")
def test_evaluate_needs_its_section(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluate.evaluate_model(tiny_config(model, tmp_path / "run"), output=None)
    assert str(refused.value) == (
        "evaluation: required by evaluate and not set; add the section or --set evaluation.data=..."
    )


@pytest.fixture
def finished(tmp_path: Path, model: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Samples of both problems: of the first one is right, of the second all."""
    output = tmp_path / "a.jsonl"
    config = evaluation_config(tmp_path, model)
    kept: list[Any] = []
    monkeypatch.setattr(
        evaluate, "SamplesFile", lambda path, *settings: kept.extend(settings) or SamplesFile(path, *settings)
    )
    with pytest.raises(AssertionError, match="not refused in time"):
        evaluate.evaluate_model(config, output=output)
    monkeypatch.undo()
    with SamplesFile(output, *kept) as file:
        for i, right in enumerate((1, 4)):
            samples = [
                Sample(
                    seed=j,
                    text="",
                    answer="7",
                    verdict="correct" if j < right else "wrong",
                    length=3,
                    truncated=False,
                    tokens=[1, 2, 3],
                )
                for j in range(4)
            ]
            asked = {"id": f"held-{i}", "problem": f"{i}+{i}=", "answer": str(2 * i), "prompt": ""}
            file.append([ProblemSamples(index=i, samples=samples, **asked)])
    return output


def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "Signals", lambda grace_s: None)
    monkeypatch.setattr(evaluate, "make_engine", lambda *_, **__: pytest.fail("an engine was built"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_all_there_is_summed_up_anew(
    finished: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For other k, too, and without an engine."""
    without_engine(monkeypatch)
    before = finished.read_bytes()
    evaluate.evaluate_model(evaluation_config(tmp_path, model, k=(2,)), output=finished)
    scores = Scores.read(finished.with_suffix(".json"))
    assert scores.k == (2,) and scores.scores["pass@2"].value == (1 / 2 + 1) / 2
    assert finished.read_bytes() == before


def test_other_settings_are_refused(
    finished: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_engine(monkeypatch)
    with pytest.raises(SamplesError, match=r"mixed: evaluation\.temperature was 1\.0 and is 0\.5; use"):
        evaluate.evaluate_model(evaluation_config(tmp_path, model, temperature=0.5), output=finished)
    other = save_tiny_model(tmp_path / "other", tied=True, seed=1)
    with pytest.raises(SamplesError, match=r"mixed: the weights of model\.path was "):
        evaluate.evaluate_model(evaluation_config(tmp_path, other), output=finished)
