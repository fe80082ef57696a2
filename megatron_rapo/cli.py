"""The command line: `train`, `evaluate`, `compare`, `report`, `judge`, `audit`, `preflight` and `doctor`.

Heavy imports wait until the configuration is known to be good.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_rapo.commands.arguments import number, said, whole_number
from megatron_rapo.config.file import load_config
from megatron_rapo.errors import InputError, print_error
from megatron_rapo.runtime import gc_control
from megatron_rapo.runtime.exit_status import only_by_returning
from megatron_rapo.runtime.rank import adopt_srun, rank

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

REQUEUE_STATUS = 75
"""Exit status of a run that stopped because it was told to, and can go on (sysexits.h: EX_TEMPFAIL)."""
TOOLS = {
    "launch": ("commands.launch", "start train or evaluate on several processes of this machine"),
    "convert": ("commands.convert", "convert, reshard, inspect and compare checkpoints"),
    "prepare-data": ("commands.prepare_data", "make a data set ready for training, or show a prompt of it"),
    "check-verifier": ("commands.check_verifier", "measure the verifier on a data set"),
    "settings": ("commands.settings", "describe every setting, or those of SECTION[.FIELD]"),
    "tensorboard": ("commands.tensorboard", "open TensorBoard on runs, by their folders or Slurm job numbers"),
}
"""Commands that parse their own arguments: the module whose `main` does, and a line for --help."""
MAX_PROFILED = 1000
"""Steps that --profile may name."""
FIRST_SPEAKS_S = 3.0
"""What is wrong on all processes the first one says, and the launcher ends the others meanwhile; what is wrong on one
node alone, say a missing file, its processes say after this time."""

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
    """Run a command; returns the exit status.

    0, 1 for a failure or a lost process, 2 for input that cannot work, 75 for a run that was told to stop and can go
    on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is there: vLLM on a CPU warns of NUMA binding
    try:
        if words and words[0] in TOOLS:
            return _tool(words[0], words[1:])
        arguments = _parser().parse_args(words)
        adopt_srun()
        with only_by_returning():
            return int(arguments.command(arguments))
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


def _tool(name: str, words: Sequence[str]) -> int:
    module = importlib.import_module(f"megatron_rapo.{TOOLS[name][0]}")
    return int(module.main(words))


def _place() -> int:
    """Return the rank, also where what the environment says of it is the error."""
    try:
        return rank()
    except InputError:
        return 0


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    with gc_control.imports():
        from megatron_rapo.run import train

    finished = train(config, resume=arguments.resume, overwrite=arguments.overwrite, profile=arguments.profile)
    return 0 if finished else REQUEUE_STATUS


def _evaluate(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    with gc_control.imports():
        from megatron_rapo.commands.evaluate import evaluate_model

    evaluate_model(config, output=arguments.output)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from megatron_rapo.commands.compare import compare_files

    compare_files(arguments.scores, k=arguments.k, output=arguments.output, plot=arguments.plot, hard=arguments.hard)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from megatron_rapo.commands.report import Options, report

    options = Options(output=arguments.output, evaluations=arguments.evaluation, rollouts_mib=arguments.rollouts_mib)
    return report(arguments.run, options)


def _audit(arguments: argparse.Namespace) -> int:
    if arguments.all == (arguments.config is not None):
        raise InputError("audit: name either a CONFIG.toml or, for every divergence at default settings, --all.")
    only_with_all = {"--markdown": arguments.markdown, "--plot": arguments.plot}
    for option, value in only_with_all.items():
        if value and not arguments.all:
            raise InputError(
                f"audit: {option} shows all divergences side by side; pass --all instead of a CONFIG.toml."
            )
    if arguments.all and arguments.set:
        raise InputError("audit: --all shows the default settings; pass a CONFIG.toml instead of --all to use --set.")
    config = None if arguments.all else load_config(arguments.config, arguments.set)
    from megatron_rapo.commands.audit import audit_all, audit_config

    if config:
        return audit_config(config, as_json=arguments.json)
    return audit_all(as_json=arguments.json, as_markdown=arguments.markdown, picture=arguments.plot)


def _preflight(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    from megatron_rapo.commands.preflight import Options, preflight

    return preflight(
        config,
        Options(
            gpus=arguments.gpus,
            gpu_memory_gib=arguments.gpu_memory_gib,
            overhead_gib=arguments.overhead_gib,
            hardware=arguments.hardware,
            completion_tokens=arguments.completion_tokens,
            suggest=arguments.suggest,
            dry_run=arguments.dry_run,
            as_json=arguments.json,
        ),
    )


def _judge(arguments: argparse.Namespace) -> int:
    from megatron_rapo.commands.judge import Options, judge_file

    options = Options(
        answer=arguments.answer, workers=arguments.workers, timeout_s=arguments.timeout_s, output=arguments.output
    )
    return judge_file(arguments.file, options)


def _doctor(arguments: argparse.Namespace) -> int:
    from megatron_rapo.commands.doctor import doctor

    return doctor(as_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron_rapo",
        description="Train reasoning models with RAPO (arXiv 2510.03865) on Megatron-Core, with rollouts by vLLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = _command(commands, "train", _train, "train a policy; start it with launch or srun")
    existing = train.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the run folder's latest checkpoint")
    existing.add_argument("--overwrite", action="store_true", help="delete an earlier run in the run folder first")
    train.add_argument(
        "--profile",
        type=_steps,
        default=(),
        metavar="STEPS",
        help="write a Chrome trace of these steps, say 2,10-12, to RUN/profile/ (docs/profiling.md)",
    )
    _add_evaluate(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_judge(commands)
    audit = _command(
        commands, "audit", _audit, "what a loss optimises, measured; exit status 1 if it is not its name's"
    )
    audit.add_argument("--all", action="store_true", help="every divergence side by side, instead of a CONFIG.toml")
    form = audit.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--markdown", action="store_true", help="with --all: print the documentation's table")
    audit.add_argument("--plot", type=Path, metavar="FILE.png", help="with --all: draw the table")
    doctor = commands.add_parser("doctor", help="whether a run can start on this machine; exit status 1 if not")
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--json", action="store_true", help="print everything as JSON")
    preflight = _command(
        commands, "preflight", _preflight, "what a run needs, on any machine; exit status 1 if it does not fit"
    )
    preflight.add_argument(
        "--gpus", type=whole_number(1, 10**6), required=True, metavar="N", help="processes, one a GPU"
    )
    memory = number(0, 10**6, above=True)
    preflight.add_argument("--gpu-memory-gib", type=memory, default=80.0, metavar="GIB", help="of each GPU (80)")
    preflight.add_argument(
        "--overhead-gib",
        type=number(0, 10**6),
        default=4.0,
        metavar="GIB",
        help="of CUDA, NCCL, workspaces, fragmentation (4)",
    )
    preflight.add_argument("--hardware", choices=("a100", "h100", "h200"), default="h100", help="for seconds (h100)")
    preflight.add_argument(
        "--completion-tokens",
        type=whole_number(1, 10**9),
        metavar="N",
        help="mean length of a completion; half of the longest by default",
    )
    preflight.add_argument("--suggest", action="store_true", help="search layouts and print the three best")
    preflight.add_argument(
        "--dry-run", action="store_true", help="have Megatron build each stage's model, without memory, and count"
    )
    preflight.add_argument("--json", action="store_true", help="print everything as JSON")
    for name, (_, text) in TOOLS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add_evaluate(commands: Commands) -> None:
    evaluate = _command(commands, "evaluate", _evaluate, "pass@k and maj@k of a model on held-out problems")
    evaluate.add_argument(
        "--model",
        action="append",
        dest="set",
        type=lambda path: f"model.path={path}",
        metavar="PATH",
        help="a Hugging Face folder, RUN/checkpoints/step-N, or RUN for its latest checkpoint; short for --set "
        "model.path=PATH",
    )
    evaluate.add_argument(
        "--k",
        action="append",
        dest="set",
        type=lambda text: f"evaluation.k={_k(text)}",
        metavar="K,K,...",
        help="the k of pass@k; short for --set evaluation.k=[K,K,...]",
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="SAMPLES.jsonl",
        help="keep every sample in this file, and the scores in SAMPLES.json; the same command goes on after a kill "
        "(docs/evaluation.md describes both)",
    )


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="one HTML file that shows runs; opens anywhere, without a network")
    report.set_defaults(command=_report)
    report.add_argument("run", type=Path, nargs="+", metavar="RUN", help="run folders, to be shown side by side")
    report.add_argument("--output", type=Path, metavar="FILE.html", help="by default the first RUN/report.html")
    report.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="SCORES.json",
        help="files of evaluate --output, say of the base model, besides those in the run folders",
    )
    report.add_argument(
        "--rollouts-mib",
        type=number(0, 10**6),
        default=8.0,
        metavar="MIB",
        help="most of the file that rollouts take (8)",
    )


def _add_judge(commands: Commands) -> None:
    what = "what the verifier says of completions in a file; exit status 0 whatever it says"
    judge = commands.add_parser("judge", help=what, description=what)
    judge.set_defaults(command=_judge)
    judge.add_argument("file", type=Path, metavar="FILE.jsonl", help="rows with a completion and a (right) answer")
    judge.add_argument(
        "--answer",
        default="boxed",
        metavar="FORM",
        help="boxed, after:MARK, last_number or tag:NAME, as reward.answer (%(default)s; docs/rewards.md)",
    )
    judge.add_argument("--workers", type=int, metavar="N", help="verifier processes; one for each core by default")
    judge.add_argument(
        "--timeout-s", type=float, default=5.0, metavar="S", help="deadline of one answer, seconds (%(default)s)"
    )
    judge.add_argument("--output", type=Path, metavar="FILE.jsonl", help="write the rows there, not to standard output")


def _add_compare(commands: Commands) -> None:
    what = "what models scored on the same problems, side by side; runs none of them"
    compare = commands.add_parser("compare", help=what, description=what)
    compare.set_defaults(command=_compare)
    compare.add_argument(
        "scores", type=Path, nargs="+", metavar="SCORES.json", help="of evaluate --output; the first is the base"
    )
    compare.add_argument("--k", type=_k, metavar="K,K,...", help="the k of pass@k; those of evaluate unless given")
    compare.add_argument("--output", type=Path, metavar="FILE.json", help="write what is shown, and the problems' ids")
    compare.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw pass@k against k, on all problems, hard ones and the rest"
    )
    compare.add_argument(
        "--hard", type=Path, metavar="FILE.jsonl", help="write the problems that the base never solves, as a data file"
    )


def _k(text: str) -> list[int]:
    """The values of --k."""
    try:
        return [int(k) for k in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{said(text)}: not whole numbers with commas between; write e.g. --k 1,4,16"
        ) from None


def _steps(text: str) -> tuple[int, ...]:
    """The values of --profile."""
    try:
        ranges = [
            (int(first), int(last or first)) for first, _, last in (part.partition("-") for part in text.split(","))
        ]
    except ValueError:
        ranges = [(1, 0)]
    if any(last < first for first, last in ranges):
        raise argparse.ArgumentTypeError(
            f"{said(text)}: neither steps nor ranges of steps, with commas between; write e.g. --profile 2,10-12"
        )
    if sum(last - first + 1 for first, last in ranges) > MAX_PROFILED:
        raise argparse.ArgumentTypeError(
            f"{said(text)}: more than {MAX_PROFILED:,} steps, and each writes a trace; write e.g. --profile 2,10-12"
        )
    return tuple(step for first, last in ranges for step in range(first, last + 1))


def _command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=description, description=description)
    command.set_defaults(command=function)
    number = "?" if name == "audit" else None
    command.add_argument("config", type=Path, metavar="CONFIG.toml", nargs=number, help="the run's settings")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="override one setting; may be given many times",
    )
    return command
