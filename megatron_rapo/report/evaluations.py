"""Read pass@k curves and their intervals from files of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_rapo.evaluation.curves import curve_k
from megatron_rapo.evaluation.scores import Scores
from megatron_rapo.runtime.run_folder import RunFolder


def find_evaluations(folder: Path) -> list[Path]:
    """Return the first and the last evaluation of a run."""
    found = RunFolder(folder).evaluations
    return found if len(found) < 2 else [found[0], found[-1]]


def read_evaluation(path: Path) -> dict[str, Any]:
    """Return a pass@k curve at powers of two up to the samples per problem. Raises ScoresError for other files."""
    scores = Scores.read(path)
    k = curve_k(scores.samples_per_problem)
    passed = {name: values_P for name, values_P in scores.values(k).items() if name.startswith("pass@")}
    found = scores.bootstrap.scores(passed).values()
    return {
        "model": scores.model,
        "data": scores.data,
        "problems": len(scores.problems),
        "samples": scores.samples_per_problem,
        "k": k,
        "pass_at": [round(score.value, 5) for score in found],
        "low": [round(score.interval[0], 5) for score in found],
        "high": [round(score.interval[1], 5) for score in found],
    }
