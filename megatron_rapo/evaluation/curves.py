"""Draw pass@k against k for several models: on all problems, those that the first never solves, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rapo.evaluation.comparison import Evaluated
from megatron_rapo.evaluation.estimators import problems_pass_at_k
from megatron_rapo.runtime.plotting import new_figure


def curve_k(samples_per_problem: int) -> list[int]:
    """Return the powers of two below the number of samples, and that number."""
    powers = [2**i for i in range(samples_per_problem.bit_length()) if 2**i < samples_per_problem]
    return [*powers, samples_per_problem]


def plot_curves(evaluated: Sequence[Evaluated], path: Path) -> None:
    """Draw the curves and save them. The first model decides which problems are hard. Raises InputError."""
    parts = _parts(evaluated[0])
    most = curve_k(max(each.scores.samples_per_problem for each in evaluated))
    size = (1.2 + 4 * len(parts), 3.8)
    with new_figure(path, len(parts), figsize=size, constrained_layout=True) as (_, axes):
        for axis, (title, chosen_P) in zip(axes, parts.items(), strict=True):
            for each in evaluated:
                _draw(axis, each, chosen_P)
            axis.set_xscale("log", base=2)
            axis.set_xticks(most, [str(k) for k in most])
            axis.minorticks_off()
            axis.set(title=title, xlabel="k", ylim=(0, 1.02))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"pass@k, {evaluated[0].scores.bootstrap.level:.0%} intervals")
        axes[0].legend(fontsize=8)


def _parts(base: Evaluated) -> dict[str, np.ndarray]:
    """Return title -> mask [P]: all problems and, if the base solves only some, the unsolved and the solved ones."""
    solved_P = np.array([problem.solved for problem in base.scores.problems])
    parts = {f"all problems: {len(solved_P)}": np.ones_like(solved_P)}
    if solved_P.any() and not solved_P.all():
        hard = f"hard, never solved by {base.path.stem}: {(~solved_P).sum()}"
        parts |= {hard: ~solved_P, f"the rest: {solved_P.sum()}": solved_P}
    return parts


def _draw(axis: Any, evaluated: Evaluated, chosen_P: np.ndarray) -> None:
    scores = evaluated.scores
    k, correct = curve_k(scores.samples_per_problem), [problem.correct for problem in scores.problems]
    values_PK = problems_pass_at_k(scores.samples_per_problem, correct, k)[chosen_P]
    [line] = axis.plot(k, values_PK.mean(axis=0), marker="o", markersize=3, label=evaluated.path.stem)
    ends = scores.bootstrap.intervals({str(each): values_PK[:, i] for i, each in enumerate(k)}).values()
    axis.fill_between(k, *zip(*ends, strict=True), color=line.get_color(), alpha=0.15, linewidth=0)
