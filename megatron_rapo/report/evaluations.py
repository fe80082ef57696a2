"""pass@k curves with their intervals, from the files that `evaluate --output` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.pass_at_k import bootstrap_interval, problems_pass_at_k

_FORMAT = "megatron_rapo evaluation"  # of every version: what is read here all have
_LEVEL, _RESAMPLES = 0.95, 2000


def find_evaluations(folder: Path) -> list[Path]:
    """Evaluations that lie in a run's folder."""
    return sorted(path for path in folder.glob("*.json") if _is_evaluation(path))


def read_evaluations(labels: Mapping[Path, str]) -> list[dict[str, Any]]:
    """A curve of each file, at powers of two up to its samples per problem. Raises InputError for other files."""
    return [{"label": label, **_read(path)} for path, label in labels.items()]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"--evaluation {path}: no such file; give a JSON file that `evaluate --output` wrote.")
    if not _is_evaluation(path):
        raise InputError(f"--evaluation {path}: no evaluation; give a JSON file that `evaluate --output` wrote.")
    content = json.loads(path.read_bytes())
    try:
        n, correct = content["samples_per_problem"], [problem["correct"] for problem in content["problems"]]
        name, data = content["model"], content["data"]
        k = sorted({1 << power for power in range(n.bit_length()) if 1 << power <= n} | {n})
        values_PK = problems_pass_at_k(n, correct, k)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--evaluation {path}: {error!r}; write it again with evaluate --output.") from None
    ends_K2 = bootstrap_interval(values_PK, level=_LEVEL, resamples=_RESAMPLES, seed=0)
    return {
        "model": name,
        "data": data,
        "problems": len(correct),
        "samples": n,
        "k": k,
        "pass_at": [round(float(mean), 5) for mean in values_PK.mean(axis=0)],
        "low": [round(float(low), 5) for low, _ in ends_K2],
        "high": [round(float(high), 5) for _, high in ends_K2],
    }


def _is_evaluation(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith(_FORMAT)
