"""The command line: which commands there are, and what their errors look like. Each parses its own arguments."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

from megatron_rapo.errors import InputError, print_error
from megatron_rapo.runtime.rank import rank

COMMANDS = {
    "train": "train a policy; start it with launch or srun",
    "evaluate": "score a model on held-out problems: pass@k, maj@k; start it with launch or srun",
    "launch": "start train or evaluate on several processes of this machine",
    "compare": "show what models scored on the same problems; runs none of them",
    "report": "write one HTML file that shows runs; it opens anywhere, without a network",
    "settings": "describe every setting, or those of SECTION[.FIELD]",
    "preflight": "say what a run needs, on any machine; exit status 1 if it does not fit",
    "doctor": "say whether a run can start on this machine; exit status 1 if not",
    "audit": "measure what a loss optimises; exit status 1 if its name says otherwise",
    "judge": "print the verifier's verdict on completions in a file",
    "check-verifier": "measure the verifier on a data set",
    "prepare-data": "prepare a data set for training, or show one of its prompts",
    "convert": "convert, reshard, inspect and compare checkpoints",
    "tensorboard": "open TensorBoard on runs, by their folders or Slurm job numbers",
}
"""One line on each command. Its module in commands/ has the same name, with _ for -, and a function `main`."""
FIRST_SPEAKS_S = 3.0
"""Time that all but the first process wait before they print an error. The first one prints what is wrong on all, and
the launcher ends the others in this time. What is wrong on one node alone, such as a missing file, its processes
print."""

_EPILOG = """\
examples:
  megatron-rapo launch --nproc-per-node 2 train examples/quickstart.toml
  megatron-rapo launch --nproc-per-node 8 train run.toml --set parallel.tensor=4 --set optimizer.lr=1e-6
  megatron-rapo launch --nproc-per-node 8 train run.toml --resume
  megatron-rapo report runs/mine runs/other --output report.html
  megatron-rapo judge completions.jsonl --answer "after:####"
  megatron-rapo audit run.toml
  megatron-rapo preflight run.toml --gpus 16 --gpu-memory-gib 80 --suggest
  megatron-rapo settings batch
  megatron-rapo doctor
  megatron-rapo launch --nproc-per-node 8 evaluate run.toml --model models/base --output base.jsonl
  megatron-rapo launch --nproc-per-node 8 evaluate run.toml --model runs/mine/checkpoints/step-000100
  megatron-rapo compare base.json mine.json --plot curves.png --hard hard.jsonl

`megatron-rapo settings` describes every setting (also docs/settings.md). Each run writes those it used to
RUN/config.json.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0; 1 for a failure or a lost process; 2 for input that cannot work; 75 for a run that was told to stop and can go
    on; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is there: vLLM on a CPU warns of NUMA binding
    try:
        return _run(words)
    except InputError as error:
        place = _place()
        if place > 0:
            time.sleep(FIRST_SPEAKS_S)
        print_error(error, prefix=f"rank {place}: " if place else "")
        return 2
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        from megatron_rapo.runtime.distributed import is_lost_process

        if not is_lost_process(error):
            raise
        print(f"rank {rank()}: lost another process of this run ({error}); see its own message.", file=sys.stderr)
        return 1


def _run(words: Sequence[str]) -> int:
    if not words or words[0] not in COMMANDS:
        _parser().parse_args(words)  # prints the help, or what is wrong, and ends
    module = importlib.import_module(f"megatron_rapo.commands.{words[0].replace('-', '_')}")
    return int(module.main(words[1:]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron_rapo",
        description="Train reasoning models with RAPO (arXiv 2510.03865) on Megatron-Core, with rollouts by vLLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _place() -> int:
    """Return the rank, or 0 if the environment's rank is itself the error."""
    try:
        return rank()
    except InputError:
        return 0
