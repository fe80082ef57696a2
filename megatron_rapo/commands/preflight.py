"""Say what a run needs, on any machine; exit status 1 if it does not fit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_rapo.commands.arguments import config_parser, number, whole_number
from megatron_rapo.config import Config, ConfigError
from megatron_rapo.config.file import load_config

if TYPE_CHECKING:
    from megatron_rapo.models import ModelShape

FITS, DOES_NOT_FIT = 0, 1  # exit status


def main(arguments: Sequence[str]) -> int:
    """Say what the run of a configuration needs. Return FITS or DOES_NOT_FIT. Raises InputError."""
    options = _parse(arguments)
    config = load_config(options.config, options.set)
    _check(config, options)
    return _preflight(config, options)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = config_parser("preflight", __doc__ or "")
    parser.add_argument(
        "--gpus", type=whole_number(1, 10**6), required=True, metavar="N", help="number of processes, one for each GPU"
    )
    memory = number(0, 10**6, above=True)
    parser.add_argument("--gpu-memory-gib", type=memory, default=80.0, metavar="GIB", help="memory of each GPU (80)")
    parser.add_argument(
        "--overhead-gib",
        type=number(0, 10**6),
        default=4.0,
        metavar="GIB",
        help="memory for CUDA, NCCL, workspaces and fragmentation (4)",
    )
    parser.add_argument(
        "--hardware",
        choices=("a100", "h100", "h200"),
        default="h100",
        help="GPU for which seconds are estimated (h100)",
    )
    parser.add_argument(
        "--completion-tokens",
        type=whole_number(1, 10**9),
        metavar="N",
        help="mean length of a completion; half of the longest by default",
    )
    parser.add_argument("--suggest", action="store_true", help="search layouts and print the three best")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="let Megatron build each stage's model without memory, and count its parameters",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser.parse_args(arguments)


def _preflight(config: Config, options: argparse.Namespace) -> int:
    from megatron_rapo.models import read_shape
    from megatron_rapo.preflight import tables
    from megatron_rapo.preflight.fit import Machine, estimate, fits, remedies, suggestions
    from megatron_rapo.preflight.seconds import HARDWARE

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
    if options.json:
        print(tables.to_json(found, machine, fitting=fitting, remedies=advice, suggestions=layouts))
    else:
        tables.show(model, found, machine, fitting=fitting, remedies=advice, suggestions=layouts)
    if options.dry_run:
        _dry_run(config, model, options.gpus)
    return FITS if fitting else DOES_NOT_FIT


def _check(config: Config, options: argparse.Namespace) -> None:
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
    from megatron_rapo.preflight.memory import parameters

    built = dry_run(config, model, world=gpus)
    counted = parameters(model, config)
    for each in built:
        if each.numel != counted[each.stage]:
            raise RuntimeError(
                f"rank {each.rank}: Megatron builds {each.numel:,} parameters, not {counted[each.stage]:,}."
            )
    print(f"dry run: Megatron builds {', '.join(f'{n:,}' for n in counted)} parameters, as counted", file=sys.stderr)
