"""Measure what a loss optimises; exit status 1 if its name says otherwise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_rapo.commands.arguments import config_parser
from megatron_rapo.config import AlgorithmConfig, RewardConfig
from megatron_rapo.config.file import load_config
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.exit_status import only_by_returning

if TYPE_CHECKING:
    from megatron_rapo.audit.measure import Audit

AGREES, DISAGREES = 0, 1  # exit status


def main(arguments: Sequence[str]) -> int:
    """Print the audit of a configuration's loss, or of every divergence. Return AGREES or DISAGREES.

    Raises InputError.
    """
    options = _parse(arguments)
    with only_by_returning():
        results = _audits(options)
    from megatron_rapo.audit import tables

    if options.json:
        print(tables.to_json(results))
    elif options.markdown:
        print(tables.markdown(results))
    elif options.all:
        tables.show_all(results)
    else:
        tables.show(results[0])
    if options.plot:
        tables.plot(results, options.plot)
    return AGREES if all(result.agrees for result in results) else DISAGREES


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options and refuse those that contradict each other. Raises InputError."""
    parser = config_parser("audit", __doc__ or "", required=False)
    parser.add_argument("--all", action="store_true", help="every divergence side by side, instead of a CONFIG.toml")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--markdown", action="store_true", help="with --all: print the documentation's table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="with --all: draw the table")
    options = parser.parse_args(arguments)
    if options.all == (options.config is not None):
        raise InputError("audit: name either a CONFIG.toml or, for every divergence at default settings, --all.")
    only_with_all = {"--markdown": options.markdown, "--plot": options.plot}
    for option, value in only_with_all.items():
        if value and not options.all:
            raise InputError(
                f"audit: {option} shows all divergences side by side; pass --all instead of a CONFIG.toml."
            )
    if options.all and options.set:
        raise InputError("audit: --all shows the default settings; pass a CONFIG.toml instead of --all to use --set.")
    return options


def _audits(options: argparse.Namespace) -> list[Audit]:
    """Audit the loss of CONFIG.toml, or with --all each divergence at the default settings. Raises InputError."""
    config = None if options.all else load_config(options.config, options.set)
    import torch

    from megatron_rapo.algo import DIVERGENCES
    from megatron_rapo.audit.measure import audit

    torch.set_num_threads(1)  # of tensors this small, threads would only wait for each other
    if config:
        return [audit(config.algorithm, config.reward, config.rollout.temperature)]
    return [audit(AlgorithmConfig.model_validate({"divergence": name}), RewardConfig()) for name in DIVERGENCES]
