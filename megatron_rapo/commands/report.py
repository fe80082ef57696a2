"""Write one HTML file that shows runs; it opens anywhere, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rapo.commands.arguments import command_parser, number
from megatron_rapo.errors import InputError
from megatron_rapo.monitor import CHARTS, describe
from megatron_rapo.report.evaluations import find_evaluations, read_evaluation
from megatron_rapo.report.page import render
from megatron_rapo.report.rollouts import read_completions
from megatron_rapo.report.runs import Run, differences, read_runs
from megatron_rapo.runtime.atomic_write import write_text_atomically
from megatron_rapo.runtime.run_folder import RunFolder, step_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the report shows, and where it is written."""

    output: Path | None  # the first run's folder by default
    evaluations: Sequence[Path]
    rollouts_mib: float  # of all runs together


def main(arguments: Sequence[str]) -> int:
    """Write a report of the runs that the arguments name, and return 0. Raises InputError."""
    parser = command_parser("report", __doc__ or "")
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="run folders, to be shown side by side")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="by default the first RUN/report.html")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="SCORES.json",
        help="files of evaluate --output, say of the base model, besides those in the run folders",
    )
    parser.add_argument(
        "--rollouts-mib",
        type=number(0, 10**6),
        default=8.0,
        metavar="MIB",
        help="largest part of the file that rollouts take (8)",
    )
    given = parser.parse_args(arguments)
    options = Options(output=given.output, evaluations=given.evaluation, rollouts_mib=given.rollouts_mib)
    report(given.run, options)
    return 0


def report(folders: Sequence[Path], options: Options) -> None:
    """Write the report of the runs in `folders`. Raises InputError."""
    output = options.output or RunFolder(folders[0]).report
    runs = read_runs(folders)
    content = render(" · ".join(run.name for run in runs), page_data(runs, options))
    try:
        write_text_atomically(output, content)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror}); name another file.") from None
    print(f"{output}: {len(content) / 2**20:.1f} MiB; open it in a browser, it needs no network")


def page_data(runs: Sequence[Run], options: Options) -> dict[str, Any]:
    """Return the data that the page's scripts draw."""
    budget = int(options.rollouts_mib * 2**20) // len(runs)
    names = dict.fromkeys(name for run in runs for name in run.curves)
    return {
        "charts": {section: {title: list(of) for title, of in charts.items()} for section, charts in CHARTS.items()},
        "meanings": {name: _meaning(name) for name in names},
        "runs": [_run(run, budget) for run in runs],
        "evaluations": _evaluations(runs, options.evaluations),
        "differences": differences(runs),
    }


def _run(run: Run, most_bytes: int) -> dict[str, Any]:
    completions, recorded = read_completions(run.folder, most_bytes=most_bytes)
    return {
        "name": run.name,
        "curves": run.curves,
        "stacks": run.stacks,
        "settings": run.settings,
        "changes": run.changes,
        "summary": run.summary,
        "machine": run.machine,
        "completions": completions,
        "recorded": recorded,
    }


def _evaluations(runs: Sequence[Run], others: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the curves of other models (run -1) and of each run (its index), from the earliest to the latest."""
    found = [{"label": path.stem, "run": -1, "earlier": False, **read_evaluation(path)} for path in others]
    for place, run in enumerate(runs):
        for path in (own := find_evaluations(run.folder)):
            label = f"{run.name}, step {step_of(path)}"
            found.append({"label": label, "run": place, "earlier": path != own[-1], **read_evaluation(path)})
    return found


def _meaning(name: str) -> str:
    """Return a scalar's description; empty for a scalar that only another version has."""
    try:
        return describe(name)
    except ValueError:
        return ""
