"""Settings from a TOML file plus `--set section.field=value`, and errors that say what to change."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from megatron_rapo.config.section import ConfigError
from megatron_rapo.config.whole import Config

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10
    import tomli as tomllib


BASE = "base"  # top-level key of a configuration file: another file, whose settings this one changes


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (TOML) over the files that it is based on, apply `section.field=value` overrides, validate.

    `base = "other.toml"` at the top of a file, relative to the file's folder, takes over all settings of the other one
    and changes those that the file names; all other paths are relative to the current folder.
    Raises ConfigError naming every bad field at once.
    """
    settings = _read(path, above=())
    for override in overrides:
        _apply(settings, override)
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The settings in `path` over those of its base; `above` are the files that led here."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: {BASE} leads back to it; base it on another file.")
    try:
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        named_by = f" ({BASE} of {above[-1]})" if above else ""
        raise ConfigError(f"{path}: no such configuration file{named_by}; check the path.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error}); mend that line.") from None
    base = settings.pop(BASE, None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ConfigError(f'{path}: {BASE}={base!r}: not the name of a file; write {BASE} = "other.toml".')
    merged = _read(path.parent / base, (*above, path.resolve()))
    for section, fields in settings.items():
        both_tables = isinstance(fields, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **fields} if both_tables else fields
    return merged


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and section and field):
        raise ConfigError(f"--set {override}: not of the form section.field=value; write e.g. --set run.steps=10.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # an unquoted string
    if isinstance(value, date | time):  # no setting is one, but a folder may be named by the day
        value = text
    table = settings.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override}: {section} is not a section; sections are {_known(())}.")
    table[field] = value


def _known(location: tuple[str, ...]) -> list[str]:
    """Names that are allowed at `location` in a configuration."""
    model: type[BaseModel] = Config
    for name in (part for part in location if not part.isdecimal()):  # where it stands in a list
        annotation = model.model_fields[name].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)


def _explain(error: Any) -> str:
    """One pydantic error as `field=value: reason; fix`."""
    location = tuple(str(part) for part in error["loc"])
    name, kind = ".".join(location), error["type"]
    if kind == "value_error":  # our own checks say it all
        return str(error["ctx"]["error"])
    if kind == "missing" and len(location) == 1:
        return f"{name}: required section and not there; add [{name}] to the file."
    if kind == "missing":
        return f"{name}: required and not set; add it to the file or pass --set {name}=..."
    if kind in ("path_type", "string_type"):
        return f"{name}={error['input']!r}: not a string; write it in quotes."
    if kind == "extra_forbidden":
        known = _known(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        fix = f"did you mean {near[0]}?" if near else f"known names here: {', '.join(known)}."
        return f"{name}={error['input']!r}: no such setting; {fix}"
    return f"{name}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}; change the value."
