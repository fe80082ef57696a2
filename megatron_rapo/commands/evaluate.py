"""Score a model on held-out problems: pass@k and maj@k; start it with launch or srun."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_rapo.commands.arguments import config_parser, whole_numbers
from megatron_rapo.config.file import load_config
from megatron_rapo.runtime import gc_control
from megatron_rapo.runtime.exit_status import only_by_returning
from megatron_rapo.runtime.rank import adopt_srun


def main(arguments: Sequence[str]) -> int:
    """Evaluate in this process, and return 0. Raises InputError."""
    options = _parse(arguments)
    adopt_srun()
    with only_by_returning():
        config = load_config(options.config, options.set)
        with gc_control.imports():
            from megatron_rapo.evaluation.evaluate import evaluate_model
        evaluate_model(config, output=options.output)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = config_parser("evaluate", __doc__ or "")
    parser.add_argument(
        "--model",
        action="append",
        dest="set",
        type=lambda path: f"model.path={path}",
        metavar="PATH",
        help="a Hugging Face folder, RUN/checkpoints/step-N, or RUN for its latest checkpoint; short for --set "
        "model.path=PATH",
    )
    parser.add_argument(
        "--k",
        action="append",
        dest="set",
        type=lambda text: f"evaluation.k={whole_numbers(text)}",
        metavar="K,K,...",
        help="the k of pass@k; short for --set evaluation.k=[K,K,...]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="SAMPLES.jsonl",
        help="keep every sample in this file, and the scores in SAMPLES.json; the same command goes on after a kill "
        "(docs/evaluation.md describes both)",
    )
    return parser.parse_args(arguments)
