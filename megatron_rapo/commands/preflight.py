"""The `preflight` command."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.models import ModelShape, read_shape
from megatron_rapo.preflight import report
from megatron_rapo.preflight.fit import Machine, estimate, fits, remedies, suggestions
from megatron_rapo.preflight.memory import parameters
from megatron_rapo.preflight.seconds import HARDWARE

FITS, DOES_NOT_FIT = 0, 1  # exit status


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the command line."""

    gpus: int
    gpu_memory_gib: float
    overhead_gib: float
    hardware: str
    completion_tokens: int | None  # mean length; half of the longest where it is None
    suggest: bool
    dry_run: bool
    as_json: bool


def preflight(config: Config, options: Options) -> int:
    """Say what a run of `config` needs; the exit status says whether it fits. Raises ConfigError."""
    _check(config, options)
    model = read_shape(config.model.path)
    layers = "transformer_engine" if config.model.layers == "auto" else config.model.layers
    machine = Machine(
        gpus=options.gpus,
        memory_bytes=options.gpu_memory_gib * 2**30,
        overhead_bytes=options.overhead_gib * 2**30,
        hardware=HARDWARE[options.hardware],
        layers="torch" if config.precision.dtype == "float32" else layers,
    )
    completion = options.completion_tokens or config.rollout.max_completion_tokens / 2
    tokens = completion + config.data.max_prompt_tokens / 2
    found = estimate(model, config, machine, tokens)
    fitting = fits(found.states, machine)
    advice = [] if fitting else remedies(model, config, machine)
    layouts = suggestions(model, config, machine, tokens) if options.suggest else None
    if options.as_json:
        print(report.to_json(found, machine, fitting=fitting, remedies=advice, suggestions=layouts))
    else:
        report.show(model, found, machine, fitting=fitting, remedies=advice, suggestions=layouts)
    if options.dry_run:
        _dry_run(config, model, options.gpus)
    return FITS if fitting else DOES_NOT_FIT


def _check(config: Config, options: Options) -> None:
    """Refuse options that contradict each other or the settings. Raises ConfigError."""
    if options.overhead_gib >= options.gpu_memory_gib:
        raise ConfigError(
            f"--overhead-gib {options.overhead_gib:g}: leaves nothing of --gpu-memory-gib {options.gpu_memory_gib:g}; "
            "lower the one, or raise the other."
        )
    longest = config.rollout.max_completion_tokens
    if options.completion_tokens and options.completion_tokens > longest:
        raise ConfigError(
            f"--completion-tokens {options.completion_tokens}: a mean above rollout.max_completion_tokens={longest}; "
            f"give at most {longest}."
        )


def _dry_run(config: Config, model: ModelShape, gpus: int) -> None:
    """Build what every pipeline stage would hold with Megatron, without memory, and check the number of parameters."""
    from megatron_rapo.mcore.dry_run import dry_run

    built = dry_run(config, model, world=gpus)
    counted = parameters(model, config)
    for each in built:
        if each.numel != counted[each.stage]:
            raise RuntimeError(
                f"rank {each.rank}: Megatron builds {each.numel:,} parameters, not {counted[each.stage]:,}."
            )
    print(f"dry run: Megatron builds {', '.join(f'{n:,}' for n in counted)} parameters, as counted", file=sys.stderr)
