"""Record a run's settings: the current ones in RUN/config.json, all with their steps in RUN/settings_history.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_rapo.config import Config
from megatron_rapo.config.renamed import with_present_names
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.atomic_write import write_text_atomically
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.runtime.safe_json import JSONError, parse_json, read_json

Row = dict[str, Any]
"""A start with changed settings: {"first_step": 5, "settings": {section: {field: value}}}."""


def record_settings(folder: Path, config: Config, *, step: int) -> None:
    """Write both files for a run that starts after `step`. Drop rows of later steps."""
    files, settings = RunFolder(folder), config.model_dump(mode="json")
    rows = [row for row in read_history(folder) if row["first_step"] <= step]
    if step and not rows and files.settings.exists():  # an older version, without a history, started the run
        rows = [{"first_step": 1, "settings": _read(files.settings)}]
    if not rows or rows[-1]["settings"] != settings:
        rows.append({"first_step": step + 1, "settings": settings})
    write_text_atomically(files.settings_history, "".join(json.dumps(row) + "\n" for row in rows))
    write_text_atomically(files.settings, config.to_json() + "\n")


def read_history(folder: Path) -> list[Row]:
    """Return the rows of a run's history; an empty list if there is no file. Raises InputError."""
    path = RunFolder(folder).settings_history
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = parse_json(line)
            rows.append({"first_step": int(row["first_step"]), "settings": with_present_names(row["settings"])})
        except (JSONError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: not a line of settings ({error}); remove the file.") from None
    return rows


def changes(history: Sequence[Row]) -> list[Row]:
    """Return all changed settings, in order: {"step": first step with the change, "name", "before", "after"}."""
    found = []
    for before, after in pairwise(history):
        old, new = _flat(before["settings"]), _flat(after["settings"])
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                values = {"before": old.get(name), "after": new.get(name)}
                found.append({"step": after["first_step"], "name": name, **values})
    return found


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, fields in settings.items():
        flat |= {f"{section}.{name}": value for name, value in fields.items()} if isinstance(fields, dict) else {}
    return flat


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except JSONError as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it.") from None
