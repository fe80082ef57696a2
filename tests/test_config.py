import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from megatron_rapo.algo import ADVANTAGES, DIVERGENCES, phi_of
from megatron_rapo.checks import check_world_size
from megatron_rapo.config import AlgorithmConfig, Divergence, RewardConfig
from megatron_rapo.config.file import load_config
from megatron_rapo.rollout.engine import MAX_TEMPERATURE, MIN_TEMPERATURE
from tests.settings import EVALUATION, MINIMAL, refusal

# --- refusals of settings that contradict each other: all of what is said ---


def functions(*settings):
    """reward.functions with these settings of each."""
    each = [f'{{function="m:f", {"" if "range" in one else "range=[0.0, 1.0], "}{one}}}' for one in settings]
    return f"reward.functions=[{', '.join(each)}]"


WITH_RATIO = ["forward_kl", "forward_kl_k3", "rapo_paper", "reverse_kl", "reverse_kl_k3"]
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
        ["reward.length={free_tokens=512, full_tokens=512, penalty=0.5}"],
        "reward.length.free_tokens=512: the penalty must rise from there to full_tokens=512; set free_tokens < "
        "full_tokens.",
    ),
    (
        ["reward.length={free_tokens=0, full_tokens=513, penalty=0.5}"],
        "reward.length.full_tokens=513: no completion is longer than rollout.max_completion_tokens=512, so none would "
        "have the full penalty; set it to at most 512.",
    ),
    (
        ["reward.budget_s=4.0"],
        "reward.budget_s=4.0: not enough for one answer's deadline, reward.timeout_s=5.0; raise reward.budget_s or "
        "lower timeout_s.",
    ),
    (
        ["reward.budget_s=600.0"],
        "reward.budget_s=600.0: while a process judges so long the others give it up, after run.timeout_s=600.0; "
        "lower it, or raise run.timeout_s.",
    ),
    (
        [functions('name="Bad one"')],
        "reward.functions.0.name='Bad one': names a metric; write lower-case letters, digits and _, a letter first.",
    ),
    *(
        (
            [functions(*names)],
            f"reward.functions.{i}.name={name!r}: is the name of another term; choose one of its own.",
        )
        for names, i, name in (
            (['name="length"'], 0, "length"),
            (['name="format"'], 0, "format"),
            (['name="own"', 'name="own"'], 1, "own"),
        )
    ),
    *(
        (
            [functions(f'name="own", range=[{low}, 1.0]')],
            f"reward.functions.0.range=[{low}, 1.0]: a term that is always the same does nothing, and a range goes up; "
            "write the lowest, then the highest value.",
        )
        for low in (1.0, 2.0)
    ),
    (
        ["run.steps=10", "checkpoint.hf_every=11"],
        "checkpoint.hf_every=11: the run has 10 steps; set it to at most 10, or to 0.",
    ),
    (
        [*EVALUATION, "run.steps=10", "evaluation.every_steps=11"],
        "evaluation.every_steps=11: the run has 10 steps; set it to at most 10, or to 0 to evaluate before and after "
        "training only.",
    ),
    (
        ["checkpoint.keep_every=20"],
        "checkpoint.keep_every=20: does nothing with checkpoint.keep_last=0, which keeps all; set keep_last, or leave "
        "keep_every out.",
    ),
    (
        ["run.steps=100", "checkpoint.every_steps=8", "checkpoint.keep_last=2", "checkpoint.keep_every=20"],
        "checkpoint.keep_every=20: not a multiple of checkpoint.every_steps=8, so not all of those steps have a "
        "checkpoint; set a multiple of it.",
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
    *(
        (
            ["algorithm.phi=constant", f"algorithm.phi_min={phi_min}", *phi_max],
            f"algorithm.phi_min={phi_min}: does nothing with algorithm.phi=constant, which is phi_max={highest} at "
            "every reward; leave it out or name another shape of phi.",
        )
        for phi_min, phi_max, highest in ((0.9, [], 1.0), (0.5, ["algorithm.phi_max=0.75"], 0.75))
    ),
    (
        ["algorithm.divergence=none", "algorithm.alpha=0.001"],
        "algorithm.alpha=0.001: does nothing with algorithm.divergence=none; "
        "set algorithm.alpha=0 or name a divergence.",
    ),
    *(
        (
            ["algorithm.divergence=none", *settings],
            f"algorithm.phi={phi}, phi_max={phi_max}: do nothing with algorithm.divergence=none; "
            "leave them out or name a divergence.",
        )
        for settings, phi, phi_max in (
            (["algorithm.phi=power"], "power", 1.0),
            (["algorithm.phi=linear", "algorithm.phi_max=0.95"], "linear", 0.95),
            (["algorithm.phi_max=0.95"], "constant", 0.95),
        )
    ),
    *(
        (
            [f"algorithm.{field}=3.0", f"algorithm.{because}"],
            f"algorithm.{field}=3.0: does nothing with algorithm.{because}; leave it out, or change that.",
        )
        for field, becauses in {
            "phi_exponent": ["phi=linear", "phi=sigmoid", "phi=constant"],
            "phi_sharpness": ["phi=linear", "phi=power", "phi=constant"],
            "log_rho_cap": ["divergence=forward_kl_exact", "divergence=reverse_kl_exact", "divergence=none"],
        }.items()
        for because in becauses
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
    (
        ["batch.share_prompts=true", "parallel.context=2"],
        "batch.share_prompts=true: with parallel.context=2 every sequence is split over ranks, and none has a whole "
        "prompt; set batch.share_prompts=false or parallel.context=1.",
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
        ["monitor.writers=[]", "monitor.sampled_completions=2"],
        "monitor.sampled_completions=2: are given to monitor.writers, of which there are none; set one of the two "
        "otherwise.",
    ),
    (
        ['monitor.writers=["wandb", "wandb"]'],
        "monitor.writers=['wandb', 'wandb']: one is named twice; name each once.",
    ),
    (
        ["monitor.rollouts_every_steps=0", "monitor.rollouts_completions=4"],
        "monitor.rollouts_completions=4: does nothing with monitor.rollouts_every_steps=0; set one of the two "
        "otherwise.",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS, ids=[message.split(":")[0] for _, message in REFUSALS])
def test_refusals(load, overrides, message):
    assert refusal(load, *overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        ["reward.correct=0.5", "reward.wrong=0.25"],
        ["reward.length={free_tokens=511, full_tokens=512, penalty=0.5}"],
        ["reward.budget_s=5.0"],
        ["reward.budget_s=599.0"],
        [functions('name="own"', 'name="own_2"')],
        ["batch.completions_per_prompt=2"],
        ["batch.optimizer_steps_per_rollout=4"],
        ["algorithm.phi_min=0.5", "algorithm.phi_max=0.5"],
        ["algorithm.divergence=none", "algorithm.alpha=0"],
        ["algorithm.divergence=none", "algorithm.phi=constant", "algorithm.phi_min=1.0", "algorithm.phi_max=1.0"],
        ["algorithm.phi=constant", "algorithm.phi_min=0.75", "algorithm.phi_max=0.75"],
        ["algorithm.phi=power", "algorithm.phi_exponent=3.0"],
        ["algorithm.phi=sigmoid", "algorithm.phi_sharpness=3.0"],
        *([f"algorithm.divergence={name}", "algorithm.log_rho_cap=3.0"] for name in WITH_RATIO),
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
        ["monitor.writers=[]"],  # the default of sampled_completions is no contradiction
        ["monitor.writers=[]", "monitor.sampled_completions=0"],
        ['monitor.writers=["mlflow", "wandb"]', "monitor.sampled_completions=2"],
        ["monitor.rollouts_every_steps=0"],
        ["monitor.rollouts_every_steps=1", "monitor.rollouts_completions=4"],
    ],
    ids=" ".join,
)
def test_the_fixes_that_the_refusals_name_work(load, overrides):
    load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["precision.fp8=e4m3", "precision.dtype=float32"],
            "precision.fp8=e4m3: needs precision.dtype=bfloat16, not float32; set it, or fp8=none.",
        ),
        (
            ["precision.fp8_recipe=delayed"],
            "precision.fp8_recipe=delayed: does nothing with precision.fp8=none; set fp8=hybrid, or leave it out.",
        ),
        (
            ["precision.bf16_layers_at_end=2"],
            "precision.bf16_layers_at_end=2: does nothing with precision.fp8=none; set fp8=hybrid, or leave it out.",
        ),
        (
            ["precision.fp8=hybrid", "precision.fp8_recipe=delayed", "precision.bf16_layers_at_start=1"],
            "precision.bf16_layers_at_start=1: delayed scaling cannot leave layers out (its magnitudes are reduced "
            "over all of them at once); set another precision.fp8_recipe, or leave it out.",
        ),
        (
            ["precision.bf16_reference=true"],
            "precision.bf16_reference=true: does nothing with precision.fp8=none; set fp8=hybrid, or leave it out.",
        ),
        (
            ["rollout.fp8=true", "precision.dtype=float32"],
            "rollout.fp8=true: vLLM quantises weights in bfloat16, not float32; set precision.dtype=bfloat16, or "
            "rollout.fp8=false.",
        ),
    ],
)
def test_fp8(load, overrides, message):
    assert refusal(load, *overrides) == message


def test_fp8_settings_that_go_together(load):
    delayed = load("precision.fp8=hybrid", "precision.fp8_recipe=delayed").precision
    assert (delayed.fp8, delayed.fp8_recipe) == ("hybrid", "delayed")
    blocks = load("precision.fp8=e4m3", "precision.fp8_recipe=mxfp8", "precision.bf16_layers_at_start=1").precision
    assert (blocks.fp8_recipe, blocks.bf16_layers_at_start, blocks.bf16_layers_at_end) == ("mxfp8", 1, 0)


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
        ("checkpoint.async_save=1", "checkpoint.async_save=1: input should be a valid boolean; change the value."),
        (
            "algorithm.divergence=kl",
            "algorithm.divergence='kl': input should be 'forward_kl', 'forward_kl_exact', 'forward_kl_k3', "
            "'rapo_paper', 'reverse_kl', 'reverse_kl_k3', 'reverse_kl_exact' or 'none'; change the value.",
        ),
        (
            "algorithm.phi=cubic",
            "algorithm.phi='cubic': input should be 'linear', 'power', 'sigmoid' or 'constant'; ch",
        ),
        ("algorithm.phi_exponent=0", "algorithm.phi_exponent=0: input should be greater than 0; change the value."),
        ("algorithm.phi_sharpness=0", "algorithm.phi_sharpness=0: input should be greater than 0; change the value."),
        (
            "algorithm.advantage=std",
            "algorithm.advantage='std': input should be 'mean_std', 'mean' or 'leave_one_out';",
        ),
        ("algorithm.aggregation=group", "algorithm.aggregation='group': input should be 'token' or 'sequence'; change"),
        ("algorithm.ratio=group", "algorithm.ratio='group': input should be 'token' or 'sequence'; change the value."),
        ("algorithm.overlong=drop", "algorithm.overlong='drop': input should be 'keep' or 'mask'; change the value."),
        ("batch.refill_rounds=-1", "batch.refill_rounds=-1: input should be greater than or equal to 0; change the"),
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
        ("run.zzz=5", "run.zzz=5: no such setting; known names here: folder, steps, seed, deterministic, timeout_s."),
        ("run.a.b=5", "run.a.b=5: no such setting; known names here: folder, steps, seed, deterministic, timeout_s."),
        (
            functions('name="own", wait=1.0'),
            "reward.functions.0.wait=1.0: no such setting; did you mean weight?",
        ),
        (
            "reward.length={free_token=1, full_tokens=2, penalty=1.0}",
            "reward.length.free_tokens: required and not set; add it to the file or pass --set "
            "reward.length.free_tokens=...\nreward.length.free_token=1: no such setting; did you mean free_tokens?",
        ),
        (
            "zzz.a=5",
            "zzz={'a': 5}: no such setting; known names here: model, data, reward, batch, algorithm, parallel, "
            "rollout, reshard, memory, optimizer, precision, checkpoint, monitor, evaluation, run.",
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


def write(folder, **files):
    """TOML files by their stems; folders may be in them (`a__b` is a/b.toml)."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_file_changes_its_base(tmp_path):
    """Section by section and setting by setting, along a chain, each base relative to the file that names it."""
    write(
        tmp_path,
        sub__run='base = "../middle.toml"\n[run]\nsteps = 5\n[optimizer]\nlr = 1e-4',
        middle='base = "deep/root.toml"\n[run]\nsteps = 4\nseed = 9\n[algorithm]\nbeta = 0.5',
        deep__root=MINIMAL + "[algorithm]\nalpha = 0.25\nbeta = 0.25",
    )
    config = load_config(tmp_path / "sub" / "run.toml", ["run.seed=7"])
    assert (config.run.steps, config.run.seed, config.run.folder) == (5, 7, Path("runs/one"))  # --set is the last word
    assert (config.algorithm.alpha, config.algorithm.beta) == (0.25, 0.5)
    assert config.optimizer.lr == 1e-4 and config.model.path == Path("models/base")  # not relative to the file


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run": 'base = "run.toml"'}, "{folder}/run.toml: base leads back to it; base it on another file."),
        (
            {"run": 'base = "one.toml"', "one": 'base = "sub/two.toml"', "sub__two": 'base = "../one.toml"'},
            "{folder}/sub/../one.toml: base leads back to it; base it on another file.",
        ),
        (
            {"run": 'base = "sub/one.toml"', "sub__one": 'base = "two.toml"'},
            "{folder}/sub/two.toml: no such configuration file (base of {folder}/sub/one.toml); check the path.",
        ),
        ({"run": "base = 3"}, '{folder}/run.toml: base=3: not the name of a file; write base = "other.toml".'),
        (
            {"run": 'base = ["one.toml"]'},
            "{folder}/run.toml: base=['one.toml']: not the name of a file; write base = \"other.toml\".",
        ),
        (
            {"run": 'base = "one.toml"\n[run]\nsteps = 0', "one": MINIMAL},
            "run.steps=0: input should be greater than or equal to 1; change the value.",
        ),
        (
            {"run": 'base = "one.toml"', "one": 'base = "run"'},
            "{folder}/run: no such configuration file (base of {folder}/one.toml); check the path.",
        ),
    ],
)
def test_bases_that_cannot_be(tmp_path, files, message):
    write(tmp_path, **files)
    assert refusal(load_config, tmp_path / "run.toml") == message.format(folder=tmp_path)


def test_a_section_and_a_value_of_one_name_do_not_merge(tmp_path):
    """Whichever comes last stands, and is then judged."""
    write(tmp_path, run='base = "one.toml"\nreward = 3', one=MINIMAL + "[reward]\nwrong = -1.0")
    assert refusal(load_config, tmp_path / "run.toml").startswith("reward=3: ")
    write(tmp_path, run='base = "one.toml"\n[reward]\nwrong = -1.0', one="reward = 3\n" + MINIMAL)
    assert load_config(tmp_path / "run.toml").reward.wrong == -1.0


def test_base_is_no_setting(load):
    assert refusal(load, "base=x.toml") == (
        "--set base=x.toml: not of the form section.field=value; write e.g. --set run.steps=10."
    )


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
        *("model", "data", "reward", "batch", "algorithm", "parallel", "rollout", "reshard", "memory"),
        *("optimizer", "precision", "checkpoint", "monitor", "evaluation", "run"),
    ]
    assert written["algorithm"] == {
        "divergence": "forward_kl",
        "alpha": 1e-3,
        "beta": 1e-3,
        "phi": "linear",
        "phi_min": 0.9,
        "phi_max": 1.0,
        "phi_exponent": 2.0,
        "phi_sharpness": 10.0,
        "advantage": "mean_std",
        "aggregation": "token",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "overlong": "keep",
        "importance_cap": 2.0,
        "log_rho_cap": 10.0,
    }
    run = {"folder": "runs/one", "steps": 3, "seed": 0, "deterministic": False, "timeout_s": 600.0}
    assert written["run"] == run
    assert written["evaluation"] is None and written["batch"]["completions_per_prompt"] == 8


@pytest.mark.parametrize("override", ["run.seed=1", "algorithm.divergence=none", "algorithm.phi=constant"])
def test_what_is_written_out_can_be_read_back(load, override):
    config = load(override)
    assert type(config).model_validate(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algorithm.divergence=none"], {"alpha": 0.0, "phi": "constant", "phi_min": 1.0, "phi_max": 1.0}),
        (["algorithm.phi=constant"], {"alpha": 1e-3, "phi": "constant", "phi_min": 1.0, "phi_max": 1.0}),
        (["algorithm.phi=constant", "algorithm.phi_max=0.95"], {"phi_min": 0.95, "phi_max": 0.95}),
        (["algorithm.phi=power"], {"phi_min": 0.9, "phi_max": 1.0, "phi_exponent": 2.0}),
    ],
)
def test_defaults_that_depend_on_another_setting(load, overrides, expected):
    found = load(*overrides).algorithm.model_dump()
    assert {name: found[name] for name in expected} == expected


def test_the_names_of_settings_are_those_of_the_functions():
    assert set(get_args(Divergence)) == set(DIVERGENCES)
    assert set(get_args(AlgorithmConfig.model_fields["advantage"].annotation)) == set(ADVANTAGES)


@pytest.mark.parametrize("shape", get_args(AlgorithmConfig.model_fields["phi"].annotation))
def test_every_shape_of_phi_is_known(shape):
    settings = {"reward_range": (0.0, 1.0), "phi_min": 0.5, "phi_max": 1.0, "exponent": 2.0, "sharpness": 10.0}
    assert phi_of(torch.ones(1), shape=shape, **settings).item() == 1.0


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
    ("rewards", "expected", "middle"),
    [
        ({}, (0.0, 1.0), 0.5),
        ({"wrong": -1.0}, (-1.0, 1.0), 0.0),
        ({"wrong": -0.5, "unformatted": -2.0}, (-2.0, 1.0), -0.5),
    ],
)
def test_reward_range(rewards, expected, middle):
    assert RewardConfig(**rewards).range == expected
    assert RewardConfig(**rewards).middle == middle


@pytest.mark.parametrize(
    ("given", "expected"), [("first", "first"), ("every", "every"), ("3", 3), ('"first"', "first")]
)
def test_which_reshardings_are_proven(load, given, expected):
    assert load(f"reshard.verify={given}").reshard.verify == expected


@pytest.mark.parametrize("given", ["0", "never", "1.5"])
def test_other_reshardings_to_prove_are_refused(load, given):
    assert refusal(load, f"reshard.verify={given}") == (
        f"reshard.verify={given}: not a choice of which reshardings are proven; set it to every, first or a number of "
        "steps from 1 on."
    )
