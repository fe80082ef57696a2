"""The `compare` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_rapo.evaluation.comparison import Evaluated, check_comparable, common_k, compare, save, save_hard
from megatron_rapo.evaluation.curves import plot_curves
from megatron_rapo.evaluation.scores import ScoresError
from megatron_rapo.evaluation.tables import show, show_comparison
from megatron_rapo.monitor import Console


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
