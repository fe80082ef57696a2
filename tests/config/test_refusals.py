"""What is refused: settings that contradict each other, values out of range. Of the first, all of what is said."""

from typing import get_args

import pytest
from pydantic import BaseModel

from megatron_rapo.config import Config
from megatron_rapo.rollout.requests import MAX_TEMPERATURE, MIN_TEMPERATURE
from tests.settings import EVALUATION, functions, refusal

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
        ["reward.correct=1e6", "reward.wrong=999999", "reward.unformatted=999999"],
        "reward.correct=1000000.0: all rewards are from 999999.0 to 1000000.0, too close for float32 to tell them "
        "apart; set values further apart, around 0.",
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
    *(
        (
            [f"reward.answer={value}"],
            f"reward.answer={value!r}: {why}.",
        )
        for value, why in (
            ("box", "no such form of an answer; write boxed, after:MARK (say after:####), last_number or tag:NAME"),
            ("after:", "a mark is one line of 1 to 100 characters, not blank; write e.g. after:####"),
            (
                "tag:<answer>",
                "a tag is named by up to 64 letters, digits, - and _, a letter first; write e.g. tag:answer",
            ),
        )
    ),
    *(
        (
            [f"reward.workers={value}"],
            f"reward.workers={value}: not a number of processes; set auto, or a number from 1 to 1024.",
        )
        for value in (0, 1025, 1.5)
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
        ["batch.partial_rollout_steps=2"],
        "batch.partial_rollout_steps=2: does nothing with batch.oversampled_prompts=0, where a rollout waits for all "
        "groups; change one of the two.",
    ),
    (
        ["batch.oversampled_prompts=9"],
        "batch.oversampled_prompts=9: a step takes at most batch.prompts_per_step=8 groups that were carried on; set "
        "at most that, or partial_rollout_steps=0.",
    ),
    (
        ["batch.old_logprobs_from_training=true", "batch.optimizer_steps_per_rollout=2"],
        "batch.old_logprobs_from_training=true: after the first of batch.optimizer_steps_per_rollout=2 optimizer steps "
        "the weights are no longer those of the old policy; set one of the two otherwise.",
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
    (
        ["optimizer.schedule=cosine", "optimizer.warmup_steps=6", "batch.optimizer_steps_per_rollout=2"],
        "optimizer.schedule=cosine: does nothing with optimizer.warmup_steps=6, all optimizer steps of the run; set "
        "warmup_steps < 6, or schedule=constant.",
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
        "checkpoint.every_steps=4: the run has 3 steps; set it to at most 3, or to 0.",
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
    (
        ["data.template=r1"],
        "data.template=r1: no such template; set it to one of plain, qwen-boxed, abel, chat, to a file that ends in "
        ".toml or .jinja, or to your own as MODULE:NAME or FILE.py:NAME.",
    ),
    (
        ['rollout.stop=["a", ""]'],
        'rollout.stop=["a", ""]: has an empty string, at which every completion would stop; take it out.',
    ),
    (
        ["rollout.stop_token_ids=[3, -1]"],
        "rollout.stop_token_ids=[3, -1]: -1 is no token id; ids start at 0.",
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
        ["data.template=mine/own.toml"],
        ["data.template=own.jinja", "data.instruction=", "data.system=Be brief."],
        ["rollout.stop=[]", "rollout.stop_token_ids=[0]"],
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
            ["memory.reference_on_device=true", "precision.fp8=hybrid"],
            "memory.reference_on_device=true: with precision.fp8=hybrid layers quantise their weights once in a pass, "
            "which would be the policy's for both; leave it out, or set fp8=none.",
        ),
        (
            ["memory.reference_on_device=true", "algorithm.divergence=none"],
            "memory.reference_on_device=true: there is no reference with algorithm.divergence=none; leave it out, or "
            "name a divergence.",
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
            "algorithm.divergence='kl': no such name; use one of forward_kl, forward_kl_exact, forward_kl_k3, "
            "rapo_paper, reverse_kl, reverse_kl_k3, reverse_kl_exact, none, or your own as MODULE:NAME or FILE.py:NAME",
        ),
        (
            "algorithm.phi=cubic",
            "algorithm.phi='cubic': no such name; use one of linear, power, sigmoid, constant, or your own as ",
        ),
        ("algorithm.phi_exponent=0", "algorithm.phi_exponent=0: input should be greater than or equal to 0.001;"),
        ("algorithm.phi_sharpness=0", "algorithm.phi_sharpness=0: input should be greater than or equal to 0.001;"),
        (
            "algorithm.advantage=std",
            "algorithm.advantage='std': no such name; use one of mean_std, mean, leave_one_out, or your own as MODULE",
        ),
        (
            'monitor.writers=["tensorbord"]',
            "monitor.writers.0='tensorbord': no such name; use one of tensorboard, wandb, mlflow, or your own as ",
        ),
        ("algorithm.aggregation=group", "algorithm.aggregation='group': input should be 'token' or 'sequence'; change"),
        ("algorithm.ratio=group", "algorithm.ratio='group': input should be 'token' or 'sequence'; change the value."),
        (
            "algorithm.overlong=drop",
            "algorithm.overlong='drop': input should be 'keep', 'mask' or 'mask_keep_baseline'; change the value.",
        ),
        (
            "batch.dynamic_sampling_rounds=-1",
            "batch.dynamic_sampling_rounds=-1: input should be greater than or equal to 0; change the",
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


def _numbers(model, prefix=""):
    """Every setting that is a number, by its name for --set."""
    for name, field in model.model_fields.items():
        within = {field.annotation, *get_args(field.annotation)}
        nested = [kind for kind in within if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for kind in nested:
            yield from _numbers(kind, f"{prefix}{name}.")
        if within & {int, float} and "functions" not in prefix:  # a list, tested below
            yield f"{prefix}{name}"


@pytest.mark.parametrize("name", sorted(_numbers(Config)))
def test_every_number_has_bounds(load, name):
    length = "reward.length={free_tokens=1, full_tokens=2, penalty=0.5}"
    for value in ("nan", "inf", "-inf", "1e30", "-1e30", "1e300", "9" * 20, "9" * 4000, f"-{'9' * 20}"):
        lines = refusal(load, *EVALUATION, length, f"{name}={value}").splitlines()
        assert [line for line in lines if line.startswith(f"{name}=")], value
        assert max(map(len, lines)) < 300


def test_bounds_of_reward_functions(load):
    for value in ("nan", "inf", "1e300", "9" * 20):
        assert refusal(load, functions(f'name="own", weight={value}')).startswith("reward.functions.0.weight=")
        low, high = f"[-{value}, 1.0]", f"[0.0, {value}]"
        assert refusal(load, functions(f'name="own", range={low}')).startswith("reward.functions.0.range.0=")
        assert refusal(load, functions(f'name="own", range={high}')).startswith("reward.functions.0.range.1=")


@pytest.mark.parametrize("name", ["model.path", "data.train", "run.folder", "evaluation.data"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('""', "is empty, and a path is needed"),
        ('"a\\u0000b"', "has a character that cannot be shown, and no path should"),
        ('"a\\u001b[2Jb"', "has a character that cannot be shown, and no path should"),
        ('"a\\nb"', "has a character that cannot be shown, and no path should"),
        ("x" * 256, "is longer than a path can be (a name: 255 bytes, all: 4000)"),
        ("x/" * 2001, "is longer than a path can be (a name: 255 bytes, all: 4000)"),
    ],
)
def test_paths_that_cannot_be(load, name, text, reason):
    message = refusal(load, *EVALUATION, f"{name}={text}")
    assert message.startswith(f"{name}=") and message.endswith(f": {reason}; change the value.")
    assert "\x1b" not in message and "\0" not in message and len(message) < 250


def test_a_long_value_in_a_message_of_our_own(load):
    message = refusal(load, f"reshard.verify={'x' * 5000}")
    assert message.startswith(f"reshard.verify={'x' * 65}... (5,016 characters) not a choice of which reshardings are ")
