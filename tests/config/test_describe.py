"""What is said of the settings is what the models do, is complete, and is found under the field's words."""

import json
import re
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.config.describe import NOTES, Setting, sections, select
from megatron_rapo.errors import InputError
from tests.config.test_refusals import REFUSALS
from tests.settings import EVALUATION, functions

SETTINGS = {setting.name: setting for section in sections() for setting in section.settings}
NAMED = re.compile(rf"(?<![\w./])(?:{'|'.join(Config.model_fields)})(?:\.[a-z][a-z0-9_]*|\.N)+(?!\w|\()")
RANGE = re.compile(r"([-\d,.e]+) to ([-\d,.e]+)|above ([-\d,.e]+), at most ([-\d,.e]+)|at least (\S+)")
LENGTH = "reward.length={free_tokens=1, full_tokens=9, penalty=0.5}"


def named(text: str) -> set[str]:
    """Names of settings in a text; an entry of a list is N."""
    return set(NAMED.findall(re.sub(r"\.\d+\b", ".N", text)))


def said(setting: Setting) -> str:
    return "\n".join((setting.effect, setting.limits, *setting.notes.values()))


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Names of settings, read from the models themselves."""
    for name, field in model.model_fields.items():
        annotations = (field.annotation, *get_args(field.annotation))
        inner = next((a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if prefix:
            yield f"{prefix}{name}"
        if inner:
            in_list = "N." if "tuple" in str(field.annotation) else ""
            yield from fields(inner, f"{prefix}{name}.{in_list}")


def test_every_setting_is_described_once_in_the_models_order() -> None:
    described = [setting.name for section in sections() for setting in section.settings]
    assert described == list(fields(Config))
    assert [section.name for section in sections()] == list(Config.model_fields)
    assert {section.name for section in sections() if section.required} == {"model", "data", "batch", "run"}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("model.path", "path; required"),
        ("model.recompute", 'none, selective or full; default "none"'),
        ("rollout.compile", "true or false; default false"),
        ("data.system", "text; default not set"),
        ("data.problem_field", 'text; default "problem"'),
        ("run.seed", "whole number; unit: none; at least 0, below 4,294,967,296; default 0"),
        ("optimizer.lr", "number; unit: none; above 0, at most 10; default 5e-07"),
        ("optimizer.beta1", "number; unit: none; at least 0, below 1; default 0.9"),
        ("algorithm.log_rho_cap", "number; unit: nats; above 0, at most 80; default 10.0"),
        ("reward.timeout_s", "number; unit: seconds; above 0, at most 604,800; not above reward.budget_s; default 5.0"),
        ("batch.completions_per_prompt", "whole number; unit: completions; at most 16,384; at least 2; default 8"),
        ("reward.workers", 'auto or whole number; unit: processes; 1 to 1,024; default "auto"'),
        (
            "reshard.verify",
            'every or first or whole number; unit: steps; every, first, or a number from 1 on; default "every"',
        ),
        ("reward.length", "table; default not set"),
        ("reward.functions", "list, each: table; default []"),
        (
            "reward.functions.N.range",
            "list of 2, each: number; unit: reward; -1,000,000 to 1,000,000; the first below the second; required",
        ),
        (
            "evaluation.k",
            "list, each: whole number; unit: completions; each from 1 to evaluation.samples_per_problem; "
            "default [1, 4, 16]",
        ),
    ],
)
def test_facts(name: str, facts: str) -> None:
    assert SETTINGS[name].facts == facts


def test_a_setting_with_every_kind_of_note() -> None:
    phi = SETTINGS["algorithm.phi"]
    assert phi.effect.startswith("Choose how phi, the exponent of the reference, rises with the reward")
    assert phi.remarks == {
        "Default": "constant with algorithm.divergence=none",
        "Excludes": "algorithm.divergence=none allows only constant; constant excludes an algorithm.phi_min below "
        "algorithm.phi_max",
        "Also called": "reward-aware reference reweighting (RAPO)",
    }
    assert SETTINGS["batch.partial_rollout_steps"].remarks["Needs"] == "batch.oversampled_prompts above 0"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_description_is_complete_and_plain(name: str) -> None:
    setting = SETTINGS[name]
    assert ("number" in setting.type) == ("Unit" in setting.notes)
    assert all(note and not note.endswith(".") for note in setting.notes.values())
    assert not re.search(rf"\b({'|'.join(NOTES)}): ", setting.effect + "".join(setting.notes.values()))
    assert setting.effect[0].isupper() and setting.effect.endswith(".")
    assert setting.effect.split()[0] not in {"Of", "What", "Which", "Where", "How", "Most", "The", "A", "As", "Whether"}
    longest = max(re.split(r"(?<=\.) ", setting.effect), key=lambda sentence: len(sentence.split()))
    assert len(longest.split()) <= 30, longest


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_a_description_names_are_there(name: str) -> None:
    assert named(said(SETTINGS[name])) <= set(SETTINGS)


@pytest.mark.parametrize("message", [message for _, message in REFUSALS])
def test_settings_that_are_refused_together_name_each_other(message: str) -> None:
    """A refusal about two settings is told beforehand, in the description of one of them."""
    head, *others = re.findall(NAMED, re.sub(r"\.\d+\b", ".N", message))
    for other in set(others) - {head}:
        both = {name for name in (head, other) if name in SETTINGS}
        linked = any({head, other} - {name} <= named(said(SETTINGS[name])) for name in both)
        assert linked, f"neither {head} nor {other} names the other"


def test_defaults_are_those_of_a_run(load) -> None:
    config = load(*EVALUATION)
    for name, setting in SETTINGS.items():
        section, _, field = name.partition(".")
        if "." in field or setting.default == "required":
            continue
        value = getattr(config, section).model_dump(mode="json")[field]
        if name not in ("rollout.max_completion_tokens",):  # the minimal file sets it
            assert setting.default == ("not set" if value is None else json.dumps(value)), name


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if RANGE.match(setting.limits)])
def test_values_outside_of_the_limits_are_refused(load, name: str) -> None:
    found = RANGE.match(SETTINGS[name].limits)
    numbers = [None if text is None else float(text.rstrip(",;").replace(",", "")) for text in found.groups()]
    least, most, above, at_most, at_least = numbers
    outside = [least - 1 if least is not None else None, most + 1 if most is not None else None]
    outside += [above, at_most + 1 if at_most is not None else None, at_least - 1 if at_least is not None else None]
    whole = "whole" in SETTINGS[name].type
    for value in (int(value) if whole else value for value in outside if value is not None):
        shown = f"[{value}, {value}]" if name.endswith(".range") else value
        if name.startswith("reward.functions.N."):
            field = name.rpartition(".")[2]
            overrides = [functions(f'name="own", {field}={shown}')]
        else:
            overrides = [*EVALUATION, *([LENGTH] if name.startswith("reward.length") else []), f"{name}={shown}"]
        with pytest.raises(ConfigError) as raised:
            load(*overrides)
        assert any(line.startswith(name.replace(".N.", ".0.")) for line in str(raised.value).splitlines())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("dynamic sampling", "batch.dynamic_sampling_rounds"),
        ("partial rollouts", "batch.oversampled_prompts"),
        ("partial rollouts", "batch.partial_rollout_steps"),
        ("over-sampling", "batch.oversampled_prompts"),
        ("clip-higher", "algorithm.clip_high"),
        ("overlong filtering", "algorithm.overlong"),
        ("truncated importance sampling", "algorithm.importance_cap"),
        ("gradient checkpointing", "model.recompute"),
        ("sequence packing", "batch.tokens_per_microbatch"),
        ("KL coefficient", "algorithm.alpha"),
    ],
)
def test_settings_are_found_under_the_words_of_the_field(words: str, name: str) -> None:
    assert words.lower() in said(SETTINGS[name]).lower()


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("run.steps", ["run.steps"]),
        (
            "reward.length",
            [
                "reward.length",
                "reward.length.free_tokens",
                "reward.length.full_tokens",
                "reward.length.penalty",
            ],
        ),
        ("reward.functions.3.weight", ["reward.functions.N.weight"]),
        ("reward.functions.N.weight", ["reward.functions.N.weight"]),
        ("memory", ["memory.engine_sleep", "memory.reference_on_device", "memory.offload_optimizer"]),
        ("algorithm.phi", ["algorithm.phi"]),  # not phi_min
    ],
)
def test_select(name: str, chosen: list[str]) -> None:
    (section,) = select(name)
    assert section.name == name.partition(".")[0]
    assert [setting.name for setting in section.settings] == chosen


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "zzz",
            "settings: zzz: no such section; known here: model, data, reward, batch, algorithm, parallel, rollout, "
            "reshard, memory, optimizer, precision, checkpoint, monitor, evaluation, run.",
        ),
        (
            "run.step",
            "settings: run.step: no such setting; did you mean run.steps? known here: run.folder, run.steps, "
            "run.seed, run.deterministic, run.timeout_s.",
        ),
        (
            "memory.",
            "settings: memory.: no such setting; known here: memory.engine_sleep, memory.reference_on_device, "
            "memory.offload_optimizer.",
        ),
    ],
)
def test_names_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        select(name)
    assert str(raised.value) == message


def test_a_near_section_is_suggested() -> None:
    with pytest.raises(InputError, match=r"^settings: rolout: no such section; did you mean rollout\? known here: "):
        select("rolout")
