"""Build what training and evaluation share: prompts, stops, verifier pool and engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.data import (
    PromptSet,
    Stops,
    Template,
    find_stops,
    load_prompts,
    load_tokenizer,
    template_of,
    template_stops,
)
from megatron_rapo.models import ModelShape
from megatron_rapo.rollout import Engine
from megatron_rapo.runtime.rank import local_world_size, world_size
from megatron_rapo.verifier import VerifierPool
from megatron_rapo.verifier.worker_count import usable_cores, workers_for

Say = Callable[[str], None]


def with_model(config: Config, folder: Path) -> Config:
    """Return the configuration with another model.path."""
    return config.model_copy(update={"model": config.model.model_copy(update={"path": folder})})


def prompts_of(config: Config, path: Path) -> PromptSet:
    """Return the prompts of the problems in `path`, shared by the processes of a machine. Raises DataError."""
    data = config.data
    return load_prompts(
        path,
        config.model.path,
        _template(config),
        data.max_prompt_tokens,
        problem_field=data.problem_field,
        answer_field=data.answer_field,
        shared=world_size() > 1,
    )


def resolved(config: Config, shape: ModelShape) -> tuple[Config, Stops]:
    """Return the configuration with the template's settings filled in, and everything that completions stop at.

    rollout.stop gets the template's stop strings, unless it is set. data.template_digest gets the digest of the
    template file. So both are saved with the run and compared when it is resumed.
    """
    data, rollout = config.data, config.rollout
    template, tokenizer = _template(config), load_tokenizer(config.model.path)
    if data.template_digest not in ("", template.digest):
        raise ConfigError(
            f"data.template_digest={data.template_digest}: data.template={data.template} has "
            f"{template.digest or 'none'}; give the file that the digest is of, or leave the digest out."
        )
    strings = template_stops(template, tokenizer) if rollout.stop is None else rollout.stop
    stops = find_stops(
        config.model.path, tokenizer, vocab_size=shape.vocab_size, strings=strings, token_ids=rollout.stop_token_ids
    )
    resolved = {
        "data": data.model_copy(update={"template_digest": template.digest}),
        "rollout": rollout.model_copy(update={"stop": strings}),
    }
    return config.model_copy(update=resolved), stops


def _template(config: Config) -> Template:
    data = config.data
    return template_of(data.template, instruction=data.instruction, system=data.system)


def report_left_out(say: Say, path: Path, prompts: PromptSet, config: Config) -> None:
    """Report how many problems of `path` were left out because their prompts are too long."""
    left_out = len(prompts.too_long)
    if left_out:
        say(
            f"{path}: {left_out} of {left_out + len(prompts.prompts)} problems left out, their prompts are over "
            f"data.max_prompt_tokens={config.data.max_prompt_tokens}"
        )


def make_verifier(config: Config) -> VerifierPool:
    """Start the verifier processes of this process."""
    reward = config.reward
    workers = workers_for(local_world_size(), usable_cores()) if reward.workers == "auto" else reward.workers
    return VerifierPool(
        workers,
        reward.timeout_s,
        budget_s=reward.budget_s,
        memory_bytes=reward.memory_mib * 2**20,
        answer=reward.answer,
    )


def make_engine(config: Config, *, sleeps: bool) -> Engine:
    """Build the engine of this process. Collective over the world."""
    return Engine(
        config.model.path,
        config.rollout,
        dtype=config.precision.dtype,
        max_sequence_tokens=config.max_sequence_tokens,
        seed=config.run.seed,
        sleeps=sleeps,
    )
