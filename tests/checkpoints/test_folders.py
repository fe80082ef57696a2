"""Which settings a resumed run may change, field by field, and which folders are checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_rapo.checkpoints.folders import (
    BY_TIME,
    INPUTS,
    CheckpointError,
    check_resumable,
    has_checkpoint,
    latest_checkpoint,
    point_to,
    problem_of_pointer,
    prune,
    save_settings,
)
from megatron_rapo.config import Config
from megatron_rapo.runtime.run_folder import step_name
from tests.runs import tiny_config

SCHEDULES = {"constant": {}, "linear": {"optimizer": {"schedule": "linear"}}}
FREE = [
    *("model.layers", "model.recompute", "batch.tokens_per_microbatch", "batch.share_prompts"),
    "batch.old_logprobs_from_training",
    *("reward.workers", "reward.timeout_s", "reward.budget_s", "reward.memory_mib"),
    *("parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline", "parallel.context", "parallel.sequence"),
    *("rollout.tensor", "rollout.kv_cache_mib", "rollout.max_concurrent", "rollout.compile"),
    *("rollout.packed", "reshard.bucket_mib", "reshard.verify", "reshard.parity_every_steps"),
    *("memory.engine_sleep", "memory.offload_optimizer", "memory.reference_on_device"),
    *("precision.dtype", "precision.fp8", "precision.bf16_reference"),
    *("precision.max_logprob_gap", "precision.on_logprob_gap", "rollout.fp8"),
    *("checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.hf_export"),
    *("checkpoint.async_save", "checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.hf_every"),
    *("monitor.writers", "monitor.sampled_completions", "monitor.gradient_share_every_steps"),
    *("monitor.rollouts_every_steps", "monitor.rollouts_completions"),
    *("precision.fp8_recipe", "precision.bf16_layers_at_start", "precision.bf16_layers_at_end"),
    *("checkpoint.grace_s", "optimizer.max_skipped_steps", "run.folder", "run.timeout_s", "run.deterministic"),
]
FIELDS = [
    f"{section}.{name}"
    for section, fields in tiny_config(Path("model"), Path("run")).model_dump().items()
    if fields is not None  # [evaluation]: see test_evaluation_may_change
    for name in fields
]


def config(**sections: dict[str, object]) -> Config:
    return tiny_config(Path("model"), Path("run"), **sections)


def saved(root: Path, config: Config, field: str | None = None) -> tuple[Path, object]:
    """Save a checkpoint of `config` with another value of `field`. Return it and the field's present value."""
    folder = root / step_name(2)
    folder.mkdir()
    save_settings(folder, config)
    settings = json.loads((folder / "settings.json").read_text())
    if field is None:
        return folder, None
    section, name = field.split(".")
    present, settings[section][name] = settings[section][name], "another"
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder, present


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_changed(tmp_path: Path, schedule: str) -> None:
    check_resumable(saved(tmp_path, config(**SCHEDULES[schedule]))[0], config(**SCHEDULES[schedule]))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_field(tmp_path: Path, field: str, schedule: str) -> None:
    settings = config(**SCHEDULES[schedule])
    checkpoint, present = saved(tmp_path, settings, field)
    if field in FREE or (field == "run.steps" and schedule == "constant"):
        check_resumable(checkpoint, settings)
        return
    with pytest.raises(CheckpointError) as refused:
        check_resumable(checkpoint, settings)
    shown = present if isinstance(present, str) else json.dumps(present)
    assert str(refused.value) == (
        f"{field}={shown}: {checkpoint} was written with another, and a resumed run must not change it; "
        f"resume with {field}=another, or start a new run."
    )


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"optimizer": {"lr": 1e-3}}, {"optimizer": {"lr": 2e-3}}, "optimizer.lr=0.002: |with optimizer.lr=0.001, "),
        (
            {"batch": {"prompts_per_step": 4}},
            {"batch": {"prompts_per_step": 8}},
            "batch.prompts_per_step=8: |written with 4, |with batch.prompts_per_step=4, ",
        ),
        ({"run": {"seed": 1}}, {"run": {"seed": 2}}, "run.seed=2: |resume with run.seed=1, "),
        (
            {"optimizer": {"schedule": "cosine"}, "run": {"steps": 4}},
            {"optimizer": {"schedule": "cosine"}, "run": {"steps": 8}},
            "run.steps=8: |resume with run.steps=4, ",
        ),
        (  # the rate of the steps to come would not be the saved schedule's
            {"optimizer": {"schedule": "cosine"}, "run": {"steps": 4}},
            {"optimizer": {"schedule": "constant"}, "run": {"steps": 8}},
            "optimizer.schedule=constant: |resume with optimizer.schedule=cosine, ",
        ),
    ],
)
def test_values_are_named(tmp_path: Path, before: dict, after: dict, words: str) -> None:
    checkpoint, _ = saved(tmp_path, config(**before))
    with pytest.raises(CheckpointError) as refused:
        check_resumable(checkpoint, config(**after))
    for part in words.split("|"):
        assert part in str(refused.value)


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, config())
    settings = json.loads((checkpoint / "settings.json").read_text())
    for section, name in (("reward", "answer"), ("reward", "length"), ("reward", "functions"), ("rollout", "top_p")):
        del settings[section][name]
    (checkpoint / "settings.json").write_text(json.dumps(settings))
    check_resumable(checkpoint, config())
    with pytest.raises(CheckpointError, match=r"^reward\.answer=last_number: .* was written with boxed, "):
        check_resumable(checkpoint, config(reward={"answer": "last_number"}))
    with pytest.raises(CheckpointError, match=r"^reward\.length=.* was written with null, "):
        check_resumable(checkpoint, config(reward={"length": {"free_tokens": 1, "full_tokens": 4, "penalty": 0.2}}))


def test_what_an_old_checkpoint_does_not_name_was_as_it_was_before(tmp_path: Path) -> None:
    """Completions of old runs had no stop strings, so such a run resumes without them or not at all."""
    checkpoint, _ = saved(tmp_path, config())
    settings = json.loads((checkpoint / "settings.json").read_text())
    for field in ("stop", "stop_token_ids"):
        del settings["rollout"][field]
    del settings["data"]["template_digest"]
    (checkpoint / "settings.json").write_text(json.dumps(settings))
    check_resumable(checkpoint, config(rollout={"stop": []}))
    for field, value in (("stop", ["Question:"]), ("stop_token_ids", [7])):
        with pytest.raises(CheckpointError) as refused:
            check_resumable(checkpoint, config(rollout={"stop": [], field: value}))
        assert str(refused.value) == (
            f"rollout.{field}={json.dumps(value)}: {checkpoint} was written with [], and a resumed run must not change "
            f"it; resume with rollout.{field}=[], or start a new run."
        )


def test_evaluation_may_change(tmp_path: Path) -> None:
    evaluation = {"evaluation": {"data": "held.jsonl", "samples_per_problem": 16}}
    checkpoint, _ = saved(tmp_path, config())
    for before, after in (({}, evaluation), (evaluation, {})):
        save_settings(checkpoint, config(**before))
        check_resumable(checkpoint, config(**after))


def test_a_longer_run_at_a_constant_rate(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, config(run={"steps": 4}))
    check_resumable(checkpoint, config(run={"steps": 400, "folder": "elsewhere"}, parallel={"tensor": 2}))


def test_a_run_does_not_go_back(tmp_path: Path) -> None:
    """With exactly the steps that it has, the resumed run ends at once."""
    checkpoint, _ = saved(tmp_path, config(run={"steps": 4}))
    check_resumable(checkpoint, config(run={"steps": 2}))
    with pytest.raises(CheckpointError) as refused:
        check_resumable(checkpoint, config(run={"steps": 1}))
    assert str(refused.value) == (
        f"run.steps=1: {checkpoint} was written after step 2, and a run does not go back; set run.steps to 2 or more, "
        "or start a new run."
    )


@pytest.mark.parametrize("field", ["model.path", "data.train"])
def test_what_there_are_digests_of_may_lie_elsewhere(tmp_path: Path, field: str) -> None:
    checkpoint, _ = saved(tmp_path, config(), field)
    (checkpoint / INPUTS).touch()
    check_resumable(checkpoint, config())


# --- folders ---


def test_the_latest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r": no checkpoint to resume from; start without --resume\.$"):
        latest_checkpoint(tmp_path)
    for step in (1, 12):
        folder = tmp_path / step_name(step)
        folder.mkdir()
        point_to(folder)
        assert latest_checkpoint(tmp_path) == folder == tmp_path / f"step-{step:06d}"
        assert problem_of_pointer(tmp_path) is None
    folder.rmdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000001"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\0" * 12, b"\xff\xfe", b"..\n", b"../checkpoints/step-000001", b"step-000003\n", None]
)
def test_a_pointer_that_names_nothing_is_passed_over(tmp_path: Path, content: bytes | None) -> None:
    """The file is as a power failure or a person may leave it. None: the file is missing."""
    for name in ("step-000001", "step-000002", "step-000010.partial", "step-x"):
        (tmp_path / name).mkdir()
    if content is not None:
        (tmp_path / "latest").write_bytes(content)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000002"
    said = problem_of_pointer(tmp_path)
    assert said and said.startswith(f"{tmp_path / 'latest'}: is missing, or does not name a checkpoint beside it; ")


def test_whether_there_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-000001.partial").mkdir()
    assert not has_checkpoint(tmp_path) and not has_checkpoint(tmp_path / "none")
    (tmp_path / "step-000001").mkdir()  # of a save that was ended before it moved `latest`
    assert has_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (0, 0, [10, 20, 30, 40, 50]),
        (1, 0, [50]),
        (2, 0, [40, 50]),
        (2, 20, [20, 40, 50]),
        (9, 10, [10, 20, 30, 40, 50]),
    ],
)
def test_old_checkpoints_are_removed(tmp_path: Path, keep_last: int, keep_every: int, kept: list[int]) -> None:
    for step in (10, 20, 30, 40, 50, 60):
        (tmp_path / step_name(step)).mkdir()
    (tmp_path / "step-000005.removed").mkdir()  # of a removal that was interrupted
    (tmp_path / "step-000070.partial").mkdir()  # of a save that was interrupted
    prune(tmp_path / step_name(50), keep_last=keep_last, keep_every=keep_every)
    expected = {step_name(step) for step in [*kept, 60]}
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize(("keep_last", "kept"), [(0, [10, 30, 50]), (2, [30, 50])])
def test_what_was_saved_by_time_goes_when_there_is_a_newer_one(tmp_path: Path, keep_last: int, kept: list[int]) -> None:
    for step in (10, 20, 30, 40, 50):
        (tmp_path / step_name(step)).mkdir()
    for step in (20, 40, 50):
        (tmp_path / step_name(step) / BY_TIME).touch()
    prune(tmp_path / step_name(50), keep_last=keep_last, keep_every=0)
    assert {path.name for path in tmp_path.iterdir()} == {step_name(step) for step in kept}
