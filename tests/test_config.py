import importlib.util
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_rapo.checks import check_world_size
from megatron_rapo.config import RewardConfig
from megatron_rapo.config_file import load_config
from megatron_rapo.rollout.engine import MAX_TEMPERATURE, MIN_TEMPERATURE
from tests.settings import EVALUATION, MINIMAL, refusal

# --- refusals of settings that contradict each other: all of what is said ---

REFUSALS = [
    (
        ["reward.correct=0.5", "reward.wrong=0.75"],
        "reward.correct=0.5: a right answer must earn more than any other (wrong=0.75, unformatted=0.0); "
        "raise reward.correct.",
    ),
    (
        ["reward.correct=0", "reward.wrong=-1"],
        "reward.correct=0.0: a right answer must earn more than any other (wrong=-1.0, unformatted=0.0); "
        "raise reward.correct.",
    ),
    (
        ["batch.completions_per_prompt=1"],
        "batch.completions_per_prompt=1: group-relative advantages need at least 2 completions of a prompt; "
        "set batch.completions_per_prompt >= 2.",
    ),
    (
        ["batch.optimizer_steps_per_rollout=3"],
        "batch.prompts_per_step=8: not divisible by batch.optimizer_steps_per_rollout=3, so the optimizer steps would "
        "differ in size; set it to a multiple of 3.",
    ),
    (
        ["algorithm.phi_min=0.9", "algorithm.phi_max=0.5"],
        "algorithm.phi_min=0.9: above phi_max=0.5, but phi must rise with the reward; "
        "set algorithm.phi_min <= algorithm.phi_max.",
    ),
    (
        ["algorithm.divergence=none", "algorithm.phi_min=1.0"],
        "algorithm.alpha=0.001: does nothing with algorithm.divergence=none; "
        "set algorithm.alpha=0 or name a divergence.",
    ),
    (
        ["algorithm.divergence=none", "algorithm.alpha=0"],
        "algorithm.phi_min=0.9: does nothing with algorithm.divergence=none; "
        "set algorithm.phi_min=1.0 or name a divergence.",
    ),
    (
        ["algorithm.divergence=rapo_paper", "algorithm.alpha=0"],
        "algorithm.alpha=0: algorithm.divergence=rapo_paper would be scored and do nothing; "
        "set algorithm.alpha > 0 or algorithm.divergence=none.",
    ),
    (
        ["parallel.sequence=true"],
        "parallel.sequence=true: splits over tensor-parallel ranks and does nothing with parallel.tensor=1; "
        "set parallel.sequence=false or parallel.tensor >= 2.",
    ),
    (
        ["parallel.virtual_pipeline=2"],
        "parallel.virtual_pipeline=2: does nothing with parallel.pipeline=1; "
        "set parallel.virtual_pipeline=1 or parallel.pipeline >= 2.",
    ),
    (
        ["rollout.top_p=0.95"],
        "rollout.top_p=0.95: a truncated sampling distribution has no probability for the tokens it leaves out, which "
        "biases the importance ratios; set rollout.top_p=1.0 (evaluation.top_p is free).",
    ),
    (
        ["optimizer.min_lr=1e-6"],
        "optimizer.min_lr=1e-06: above optimizer.lr=5e-07; set optimizer.min_lr <= optimizer.lr.",
    ),
    (
        ["optimizer.min_lr=1e-7"],
        "optimizer.min_lr=1e-07: does nothing with optimizer.schedule=constant; "
        "set optimizer.min_lr=0.0 or schedule=linear or cosine.",
    ),
    *(
        (
            [*EVALUATION, "evaluation.samples_per_problem=4", f"evaluation.k={k}"],
            f"evaluation.k={k}: each k must be between 1 and evaluation.samples_per_problem=4; change one of the two.",
        )
        for k in ([1, 5], [0, 1], [])
    ),
    (
        [*EVALUATION, "evaluation.temperature=0"],
        "evaluation.samples_per_problem=16: greedy samples (temperature=0) are all the same; "
        "set evaluation.samples_per_problem=1 and evaluation.k=[1].",
    ),
    (
        [*EVALUATION, "evaluation.temperature=0.001"],
        "evaluation.temperature=0.001: vLLM would sample at 0.01; set evaluation.temperature=0 (greedy) or >= 0.01.",
    ),
    (
        ["batch.tokens_per_microbatch=1535"],
        "batch.tokens_per_microbatch=1535: a sequence may have 1536 tokens (data.max_prompt_tokens + "
        "rollout.max_completion_tokens) and would not fit a micro-batch; set batch.tokens_per_microbatch >= 1536.",
    ),
    (  # aligned to 2 * context
        ["parallel.context=2", "rollout.max_completion_tokens=513", "batch.tokens_per_microbatch=1539"],
        "batch.tokens_per_microbatch=1539: a sequence may have 1540 tokens (data.max_prompt_tokens + "
        "rollout.max_completion_tokens) and would not fit a micro-batch; set batch.tokens_per_microbatch >= 1540.",
    ),
    *(
        (
            [f"optimizer.warmup_steps={3 * per_rollout + 1}", f"batch.optimizer_steps_per_rollout={per_rollout}"],
            f"optimizer.warmup_steps={3 * per_rollout + 1}: the run has {3 * per_rollout} optimizer steps and would "
            f"never reach optimizer.lr; set optimizer.warmup_steps <= {3 * per_rollout}.",
        )
        for per_rollout in (1, 2)
    ),
    (
        ["checkpoint.every_steps=4"],
        "checkpoint.every_steps=4: the run has 3 steps; set it to at most 3, or to 0 to save at the end only.",
    ),
    (
        ["monitor.tensorboard=false", "monitor.sampled_completions=2"],
        "monitor.sampled_completions=2: are written to TensorBoard, which monitor.tensorboard=false leaves out; "
        "set one of the two otherwise.",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS, ids=[message.split(":")[0] for _, message in REFUSALS])
def test_refusals(load, overrides, message):
    assert refusal(load, *overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        ["reward.correct=0.5", "reward.wrong=0.25"],
        ["batch.completions_per_prompt=2"],
        ["batch.optimizer_steps_per_rollout=4"],
        ["algorithm.phi_min=0.5", "algorithm.phi_max=0.5"],
        ["algorithm.divergence=none", "algorithm.alpha=0", "algorithm.phi_min=1.0"],
        ["parallel.sequence=true", "parallel.tensor=2"],
        ["parallel.virtual_pipeline=2", "parallel.pipeline=2"],
        ["optimizer.min_lr=1e-7", "optimizer.schedule=cosine"],
        [*EVALUATION, "evaluation.top_p=0.95"],
        [*EVALUATION, "evaluation.temperature=0", "evaluation.samples_per_problem=1", "evaluation.k=[1]"],
        [*EVALUATION, "evaluation.samples_per_problem=4", "evaluation.k=[1,4]"],
        ["batch.tokens_per_microbatch=1536"],
        ["parallel.context=2", "rollout.max_completion_tokens=513", "batch.tokens_per_microbatch=1540"],
        ["optimizer.warmup_steps=3"],
        ["optimizer.warmup_steps=6", "batch.optimizer_steps_per_rollout=2"],
        ["checkpoint.every_steps=3"],
        ["checkpoint.every_steps=0"],
        ["monitor.tensorboard=false"],  # its default is no contradiction
        ["monitor.tensorboard=false", "monitor.sampled_completions=0"],
        ["monitor.tensorboard=true", "monitor.sampled_completions=2"],
    ],
    ids=" ".join,
)
def test_the_fixes_that_the_refusals_name_work(load, overrides):
    load(*overrides)


@pytest.mark.parametrize(
    ("installed", "overrides", "message"),
    [
        (
            False,
            ["precision.fp8=hybrid"],
            "precision.fp8=hybrid: Transformer Engine is not installed, and Megatron would ignore the setting "
            "silently; install transformer-engine (Hopper or newer GPU) or set precision.fp8=none.",
        ),
        (
            True,
            ["precision.fp8=e4m3", "precision.dtype=float32"],
            "precision.fp8=e4m3: needs precision.dtype=bfloat16, not float32; set it, or fp8=none.",
        ),
    ],
)
def test_fp8(load, monkeypatch, installed, overrides, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert refusal(load, *overrides) == message


# --- refusals of single values: field and value, then pydantic's reason ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps=0", "run.steps=0: input should be greater than or equal to 1; change the value."),
        ("run.steps=1.0", "run.steps=1.0: input should be a valid integer; change the value."),
        ("run.steps=true", "run.steps=True: input should be a valid integer; change the value."),
        ("run.steps=three", "run.steps='three': input should be a valid integer; change the value."),
        ("run.seed=-1", "run.seed=-1: input should be greater than or equal to 0; change the value."),
        (f"run.seed={2**32}", "run.seed=4294967296: input should be less than 4294967296; change the value."),
        ("optimizer.lr=nan", "optimizer.lr=nan: input should be a finite number; change the value."),
        ("reward.correct=inf", "reward.correct=inf: input should be a finite number; change the value."),
        ("algorithm.clip_low=1", "algorithm.clip_low=1: input should be less than 1; change the value."),
        ("algorithm.phi_max=1.5", "algorithm.phi_max=1.5: input should be less than or equal to 1; change the value."),
        (
            "algorithm.importance_cap=0.5",
            "algorithm.importance_cap=0.5: input should be greater than or equal to 1; change the value.",
        ),
        ("rollout.temperature=0", "rollout.temperature=0: input should be greater than or equal to 0.01; change the"),
        ("rollout.temperature=2.5", "rollout.temperature=2.5: input should be less than or equal to 2; change the"),
        ("monitor.tensorboard=1", "monitor.tensorboard=1: input should be a valid boolean; change the value."),
        (
            "algorithm.divergence=kl",
            "algorithm.divergence='kl': input should be 'rapo_paper', 'forward_kl', 'reverse_kl' or 'none'; change the",
        ),
        ("model.path=123", "model.path=123: not a string; write it in quotes."),
        ("data.answer_field=7", "data.answer_field=7: not a string; write it in quotes."),
    ],
)
def test_values_out_of_range(load, override, message):
    assert refusal(load, override).startswith(message)


def test_temperatures_are_those_that_the_engine_takes(load):
    assert load(f"rollout.temperature={MIN_TEMPERATURE}").rollout.temperature == MIN_TEMPERATURE
    assert load(f"rollout.temperature={MAX_TEMPERATURE}").rollout.temperature == MAX_TEMPERATURE
    assert refusal(load, f"rollout.temperature={MIN_TEMPERATURE / 2}").startswith("rollout.temperature=0.005: ")
    assert refusal(load, f"rollout.temperature={MAX_TEMPERATURE + 0.1}").startswith("rollout.temperature=2.1: ")
    assert refusal(load, *EVALUATION, "evaluation.temperature=2.1").startswith("evaluation.temperature=2.1: ")


def test_every_bad_field_is_named_at_once(load):
    message = refusal(load, "run.steps=0", "batch.completions_per_prompt=1", "optimizer.learning_rate=1e-6")
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "batch.completions_per_prompt=1",
        "optimizer.learning_rate=1e-06",
        "run.steps=0",
    ]


# --- names ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.step=5", "run.step=5: no such setting; did you mean steps?"),
        ("algorithm.phi_mim=0.5", "algorithm.phi_mim=0.5: no such setting; did you mean phi_min?"),
        ("rolout.tensor=2", "rolout={'tensor': 2}: no such setting; did you mean rollout?"),
        ("run.zzz=5", "run.zzz=5: no such setting; known names here: folder, steps, seed, timeout_s."),
        ("run.a.b=5", "run.a.b=5: no such setting; known names here: folder, steps, seed, timeout_s."),
        (
            "zzz.a=5",
            "zzz={'a': 5}: no such setting; known names here: model, data, reward, batch, algorithm, parallel, "
            "rollout, reshard, optimizer, precision, checkpoint, monitor, evaluation, run.",
        ),
    ],
)
def test_unknown_names(load, override, message):
    assert refusal(load, override) == message


def test_unknown_name_in_a_section_that_may_be_left_out(load):
    message = refusal(load, *EVALUATION, "evaluation.sample_per_problem=5")
    assert message == "evaluation.sample_per_problem=5: no such setting; did you mean samples_per_problem?"


def test_what_must_be_set(load):
    assert refusal(load, "evaluation.k=[1]") == (
        "evaluation.data: required and not set; add it to the file or pass --set evaluation.data=..."
    )
    assert refusal(load, text=MINIMAL.replace('train = "train.jsonl"', "")) == (
        "data.train: required and not set; add it to the file or pass --set data.train=..."
    )
    assert refusal(load, text=MINIMAL.replace('[model]\npath = "models/base"', "")) == (
        "model: required section and not there; add [model] to the file."
    )
    assert load("data.train=x.jsonl", text=MINIMAL.replace('train = "train.jsonl"', "")).data.train == Path("x.jsonl")


# --- --set ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=7", 7),
        ("run.steps = 7", 7),
        ("run.seed=1_000", 1000),
        ("optimizer.lr=1e-6", 1e-6),
        ("optimizer.lr=1", 1.0),
        ("reward.wrong=-0.5", -0.5),
        ("parallel.sequence=false", False),
        ("algorithm.divergence=reverse_kl", "reverse_kl"),
        ('algorithm.divergence="reverse_kl"', "reverse_kl"),
        ("data.problem_field=the question", "the question"),
        ("data.problem_field=a=b", "a=b"),
        ('data.problem_field="7"', "7"),
        ("model.path=/models/Qwen2.5 7B/#1", Path("/models/Qwen2.5 7B/#1")),
        ("model.path='x y'", Path("x y")),
        ("run.folder=runs/2026-01-31", Path("runs/2026-01-31")),
        ("run.folder=2026-01-31", Path("2026-01-31")),  # a date in TOML
        ("run.folder=12:30:00", Path("12:30:00")),
    ],
)
def test_overrides(load, override, expected):
    section, field = override.partition("=")[0].strip().split(".")
    found = getattr(getattr(load(override), section), field)
    assert found == expected and type(found) is type(expected)


def test_override_of_a_list(load):
    assert load(*EVALUATION, "evaluation.k=[1, 2, 8]").evaluation.k == (1, 2, 8)


def test_the_last_override_counts(load):
    assert load("run.steps=7", "run.steps=9").run.steps == 9


@pytest.mark.parametrize("override", ["run.steps", "steps=3", ".steps=3", "run.=3", "=3", ""])
def test_overrides_of_another_form(load, override):
    assert refusal(load, override) == (
        f"--set {override}: not of the form section.field=value; write e.g. --set run.steps=10."
    )


def test_override_in_what_is_no_section(load):
    message = refusal(load, "run.steps=3", text="run = 3")
    assert message.startswith("--set run.steps=3: run is not a section; sections are ['model', 'data', ")


# --- files ---


def test_no_file(tmp_path):
    path = tmp_path / "none.toml"
    assert refusal(load_config, path) == f"{path}: no such configuration file; check the path."


def test_a_folder(tmp_path):
    assert refusal(load_config, tmp_path) == f"{tmp_path}: cannot be read (Is a directory); give a TOML file."


@pytest.mark.parametrize(
    ("text", "line"), [("[run\nsteps = 3", 1), ("[run]\nsteps = \n", 2), (MINIMAL + "\n[run]\nsteps = 4\n", 18)]
)
def test_broken_toml_with_its_line(load, tmp_path, text, line):
    message = refusal(load, text=text)
    assert message.startswith(f"{tmp_path / 'run.toml'}: not valid TOML (")
    assert f"at line {line}, " in message and message.endswith("; mend that line.")


def test_not_text(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(load_config, path).startswith(f"{path}: not valid TOML (")


def test_quickstart():
    config = load_config(Path(__file__).parents[1] / "examples" / "quickstart.toml")
    assert config.model.path == Path("examples/tiny/model")
    assert config.algorithm.divergence == "forward_kl" and config.algorithm.phi_max == 1.0
    assert config.parallel.tensor == 2 and config.rollout.tensor == 1
    assert config.batch.completions_per_optimizer_step == 16 * 16
    assert config.evaluation.k == (1, 4, 16)
    check_world_size(config, 2)


# --- what a configuration is ---


def test_defaults_are_written_out(load, tmp_path):
    config = load()
    written = json.loads(config.to_json())
    assert list(written) == [
        *("model", "data", "reward", "batch", "algorithm", "parallel", "rollout", "reshard", "optimizer"),
        *("precision", "checkpoint", "monitor", "evaluation", "run"),
    ]
    assert written["algorithm"] == {
        "divergence": "forward_kl",
        "alpha": 1e-3,
        "beta": 1e-3,
        "phi_min": 0.9,
        "phi_max": 1.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "importance_cap": 2.0,
        "log_ratio_cap": 10.0,
    }
    assert written["run"] == {"folder": "runs/one", "steps": 3, "seed": 0, "timeout_s": 600.0}
    assert written["evaluation"] is None and written["batch"]["completions_per_prompt"] == 8
    assert type(config).model_validate(written) == config  # it can be read back


def test_every_setting_says_what_it_is(load):
    for section in vars(load(*EVALUATION)).values():
        for name, field in type(section).model_fields.items():
            assert field.description and field.description.endswith("."), f"{type(section).__name__}.{name}"


def test_frozen(load):
    config = load()
    for target, field, value in ((config.run, "steps", 4), (config, "run", config.run), (config, "new", 1)):
        with pytest.raises(ValidationError):
            setattr(target, field, value)
    assert config.run.steps == 3


def test_derived_values(load):
    config = load(
        *("batch.prompts_per_step=12", "batch.optimizer_steps_per_rollout=3", "batch.completions_per_prompt=5"),
        *("parallel.tensor=2", "parallel.pipeline=3", "parallel.context=5", "batch.tokens_per_microbatch=9000"),
    )
    assert config.batch.prompts_per_optimizer_step == 4
    assert config.batch.completions_per_optimizer_step == 20
    assert config.parallel.model_size == 30
    assert config.max_sequence_tokens == 1024 + 512
    longer = load(*EVALUATION, "evaluation.max_completion_tokens=700")
    assert longer.max_sequence_tokens == 1024 + 700
    assert load(*EVALUATION, "evaluation.max_completion_tokens=100").max_sequence_tokens == 1024 + 512


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [({}, (0.0, 1.0)), ({"wrong": -1.0}, (-1.0, 1.0)), ({"wrong": -0.5, "unformatted": -2.0}, (-2.0, 1.0))],
)
def test_reward_range(rewards, expected):
    assert RewardConfig(**rewards).range == expected


# --- checks against processes, model and machine ---
