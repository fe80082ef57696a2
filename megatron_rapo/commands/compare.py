"""Show what models scored on the same problems, side by side; runs none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_rapo.commands.arguments import command_parser, whole_numbers
from megatron_rapo.evaluation.comparison import Evaluated, check_comparable, common_k, compare, save, save_hard
from megatron_rapo.evaluation.curves import plot_curves
from megatron_rapo.evaluation.scores import ScoresError
from megatron_rapo.evaluation.tables import show, show_comparison
from megatron_rapo.monitor import Console


def main(arguments: Sequence[str]) -> int:
    """Compare the files of scores that the arguments name, and return 0. Raises InputError."""
    parser = command_parser("compare", __doc__ or "")
    parser.add_argument(
        "scores", type=Path, nargs="+", metavar="SCORES.json", help="files of evaluate --output; the first is the base"
    )
    parser.add_argument(
        "--k", type=whole_numbers, metavar="K,K,...", help="the k of pass@k; by default those of evaluate"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="write what is shown, with the ids of the problems"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw pass@k against k, on all problems, hard ones and the rest"
    )
    parser.add_argument(
        "--hard", type=Path, metavar="FILE.jsonl", help="write the problems that the base never solves, as a data file"
    )
    options = parser.parse_args(arguments)
    compare_files(options.scores, k=options.k, output=options.output, plot=options.plot, hard=options.hard)
    return 0


def compare_files(
    paths: Sequence[Path], *, k: Sequence[int] | None, output: Path | None, plot: Path | None, hard: Path | None
) -> None:
    """Show the first file's model, the base, and every other one against it; write what is asked for.

    Raises ScoresError, or InputError where a picture cannot be drawn.
    """
    base, *others = evaluated = [Evaluated.read(path) for path in paths]
    written = [path for path in (output, plot, hard) if path]
    for path in written:
        if any(path.exists() and path.samefile(read) for read in paths):
            raise ScoresError(f"{path}: is compared, and would be replaced; name another file.")
    for other in others:
        check_comparable(base, other)
    chosen = common_k(evaluated, k)
    comparisons = [compare(base, other, chosen) for other in others]
    with Console(0) as console:
        show(console, base.scores)
        for comparison in comparisons:
            show_comparison(console, base, comparison)
        if output:
            save(comparisons, output)
        if hard:
            console.message(f"{hard}: {save_hard(base, hard)} of {len(base.scores.problems)} problems")
        if plot:
            plot_curves(evaluated, plot)
