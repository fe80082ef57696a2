"""Read a run's folder into the data that the page shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from megatron_rapo.config import Config
from megatron_rapo.config.renamed import with_present_names
from megatron_rapo.errors import InputError
from megatron_rapo.monitor import CHARTS, read_rows
from megatron_rapo.monitor.settings_history import changes, read_history
from megatron_rapo.report.curves import curves, stacks
from megatron_rapo.runtime.run_folder import RunFolder

STACKED = {
    "Verdicts": CHARTS["Verifier"]["Verdicts"],
    "Seconds by part": CHARTS["Time"]["Resharding"],
    "Seconds by phase": CHARTS["Time"]["Seconds by phase"],
}
"""Charts whose scalars are parts of a whole."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run without its rollouts and evaluations."""

    name: str
    folder: Path
    curves: dict[str, dict[str, list[Any]]]  # by scalar, see curves.py
    stacks: dict[str, dict[str, Any]]  # by title of the chart
    settings: dict[str, Any]  # section.field -> value
    changes: list[dict[str, Any]]  # changed settings (settings_history.py), values as text
    summary: dict[str, Any]
    machine: dict[str, Any]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in `folders`. Raises InputError for a folder that is no run."""
    names = _names(folders)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    files = RunFolder(folder)
    if not files.metrics.is_file():
        raise InputError(f"{folder}: has no {files.metrics.name}, so it is no run folder; name one that `train` wrote.")
    try:
        rows = read_rows(files.metrics)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); name another.") from None
    if not rows:
        raise InputError(f"{folder}: its {files.metrics.name} is empty, because no step has ended yet; wait for one.")
    return Run(
        name=name,
        folder=folder,
        curves=curves(rows),
        stacks={title: stacks(rows, names) for title, names in STACKED.items()},
        settings=dict(_flat(with_present_names(_json(files.settings)))),
        changes=[
            change | {name: _text(change, name) for name in ("before", "after")}
            for change in changes(read_history(folder))
        ],
        summary=_json(files.summary),
        machine=_json(files.machine),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as many parent folders as needed to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"report {' '.join(map(str, folders))}: a run is named twice; name each once.")
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON file that a run writes once. Return {} if it does not exist yet."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); repair or remove it.") from None
    return content if isinstance(content, dict) else {}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, fields in settings.items():
        if isinstance(fields, Mapping):
            flat |= {f"{section}.{name}": value for name, value in fields.items()}
        else:
            flat[section] = fields
    return flat


def defaults() -> dict[str, Any]:
    """Map section.field to its default, as a run writes it. Omit fields without one."""
    found: dict[str, Any] = {}
    for section, of_config in Config.model_fields.items():
        kinds = (of_config.annotation, *get_args(of_config.annotation))  # an optional section is a union with None
        fields: dict[str, Any] = next((kind.model_fields for kind in kinds if hasattr(kind, "model_fields")), {})
        found |= {
            f"{section}.{name}": json.loads(json.dumps(each.get_default(call_default_factory=True)))
            for name, each in fields.items()
            if not each.is_required() and isinstance(each.default, str | int | float | tuple | list | None)
        }
    return found


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """List the settings that differ between `runs`. For a single run, list those that differ from their defaults."""
    shown = [run.settings for run in runs] if len(runs) > 1 else [runs[0].settings, defaults()]
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    return [
        {"name": name, "values": [_text(settings, name) for settings in shown]}
        for name in names
        if len({_text(settings, name) for settings in shown}) > 1
    ]


def _text(settings: Mapping[str, Any], name: str) -> str:
    """Return a value as written in a configuration file, or a dash if it is missing."""
    if name not in settings:
        return "–"
    value = settings[name]
    return value if isinstance(value, str) else json.dumps(value)
