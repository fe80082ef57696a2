"""Print scores and comparisons on the terminal."""

from __future__ import annotations

from megatron_rapo.evaluation.comparison import Comparison, Evaluated, Part
from megatron_rapo.evaluation.scores import Score, Scores
from megatron_rapo.monitor import Console


def show(console: Console, scores: Scores) -> None:
    """Print one model's scores."""
    interval = f"{scores.bootstrap.level:.0%} interval"
    rows = [
        [label(name, scores.samples_per_problem), f"{score.value:.3f}", _interval(score)]
        for name, score in scores.scores.items()
    ]
    rows.append(["completion tokens", f"{scores.completion_tokens:.1f}", ""])
    rows.append(["truncated", f"{scores.truncated:.3f}", ""])
    samples = f"{len(scores.problems)} problems, {scores.samples_per_problem} samples each"
    console.table(f"{scores.model} on {samples}", ["", "score", interval], rows)


def show_comparison(console: Console, base: Evaluated, comparison: Comparison) -> None:
    """Print what changed from the base, which problems were gained and lost, and the scores on both parts."""
    for difference in comparison.sampled_otherwise:
        console.message(f"note: sampled with {difference}")
    n, level = comparison.samples_per_problem, f"{base.scores.bootstrap.level:.0%} interval"
    rows = [
        [
            label(name, n[0] if n[0] == n[1] else 0),
            f"{d.base:.3f}",
            f"{d.other:.3f}",
            _signed(d.difference),
            f"{_signed(d.interval[0])} to {_signed(d.interval[1])}",
            f"{d.p_value:.3g}",
        ]
        for name, d in comparison.metrics.items()
    ]
    title = f"{comparison.other_model} ({comparison.other}) against {comparison.base_model} ({comparison.base})"
    console.table(title, ["", "base", "other", "difference", level, "p"], rows)
    _show_solved(console, comparison)
    for name, part in (("never solves", comparison.hard), ("solves", comparison.rest)):
        if part:
            _show_part(console, f"on the {len(part.problems)} problems that the base {name}", part, level, n[1])


def _show_solved(console: Console, comparison: Comparison) -> None:
    solved, (before, now) = comparison.solved, comparison.samples_per_problem
    by = {
        "by the other only": solved.only_other,
        "by the base only (lost)": solved.lost,
        "by both": solved.both,
        "by neither": solved.neither,
    }
    chances = f"in {now} samples" if now == before else f"in {now} samples, the base's in {before}"
    test = "" if solved.p_value is None else f", McNemar's p {solved.p_value:.3g}"
    title = f"solved at least once {chances}{test}"
    console.table(title, ["", "problems"], [[who, str(len(ids))] for who, ids in by.items()])


def _show_part(console: Console, title: str, part: Part, level: str, n: int) -> None:
    rows = [
        [label(name, n), f"{part.base[name].value:.3f}", f"{score.value:.3f}", _interval(score)]
        for name, score in part.other.items()
    ]
    console.table(title, ["", "base", "other", level], rows)


def label(name: str, n: int) -> str:
    """Return a metric's label: `avg` with its number of samples, if both models have the same."""
    return f"avg@{n}" if name == "avg" and n else name


def _interval(score: Score) -> str:
    return "{:.3f} to {:.3f}".format(*score.interval)


def _signed(difference: float) -> str:
    return f"{round(difference, 3) + 0.0:+.3f}"  # + 0.0 turns -0.0, shown as -0.000, into 0.0
