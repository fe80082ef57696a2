"""What a configuration is: defaults, derived values, descriptions."""

import json

import pytest
import torch
from pydantic import ValidationError

from megatron_rapo import builtin_names
from megatron_rapo.algo import DIVERGENCES, phi_of
from megatron_rapo.config import RewardConfig
from tests.settings import EVALUATION, refusal


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


def test_what_has_no_ratio_is_what_the_divergences_say():
    without = [name for name, each in DIVERGENCES.items() if each.exact or not each.reference]
    assert sorted(builtin_names.WITHOUT_RATIO) == sorted(without)


@pytest.mark.parametrize("shape", builtin_names.PHI_SHAPES)
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


@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), ("0", 0), ("1", 1), ("50", 50)])
def test_how_often_the_gradient_share_is_measured(load, given, expected):
    assert load().monitor.gradient_share_every_steps == "auto"
    assert load(f"monitor.gradient_share_every_steps={given}").monitor.gradient_share_every_steps == expected


@pytest.mark.parametrize("given", ["-1", "often", "1.5", "true"])
def test_how_often_the_gradient_share_is_not_measured(load, given):
    shown = {"true": "True"}.get(given, given)
    assert refusal(load, f"monitor.gradient_share_every_steps={given}") == (
        f"monitor.gradient_share_every_steps={shown}: not a number of steps; set it to auto, to 0 for "
        "never, or to a number up to 1,000,000,000."
    )
