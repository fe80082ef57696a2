"""Settings from a TOML file plus `--set section.field=value`, and errors that say what to change."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from megatron_rapo.config.renamed import RENAMED
from megatron_rapo.config.root import Config
from megatron_rapo.config.section import NO_SUCH_NAME, ConfigError
from megatron_rapo.errors import shortened

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10
    import tomli as tomllib


_LONG_WORD = re.compile(r"\S{200,}")
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
    """Return the settings in `path` over those of its base. `above` are the files that are based on it."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: {BASE} leads back to it; base it on another file.")
    try:
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        named_by = f" ({BASE} of {above[-1]})" if above else ""
        raise ConfigError(f"{path}: no such configuration file{named_by}; check the path.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file.") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, bytes that are not UTF-8, thousands of digits
        raise ConfigError(f"{path}: not valid TOML ({_reason(error)}); mend that line.") from None
    base = settings.pop(BASE, None)
    if base is None:
        return settings
    if not isinstance(base, str) or "\0" in base:
        raise ConfigError(
            f'{path}: {BASE}={shortened(repr(base))}: not the name of a file; write {BASE} = "other.toml".'
        )
    merged = _read(path.parent / base, (*above, path.resolve()))
    for section, fields in settings.items():
        both_tables = isinstance(fields, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **fields} if both_tables else fields
    return merged


def _reason(error: ValueError | RecursionError) -> str:
    """Return why text is not TOML that can be used."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, (tomllib.TOMLDecodeError, UnicodeDecodeError)):
        return shortened(str(error), 200)
    return "a number has too many digits"  # of Python's own conversion: it names no line


def _apply(settings: dict[str, Any], override: str) -> None:
    """Set what `section.field=value` names; a part of the name that stands in a list is its index (from 0)."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not (equals and len(parts) > 1 and all(parts)):
        raise ConfigError(
            f"--set {shortened(override)}: not of the form section.field=value; write e.g. --set run.steps=10."
        )
    if not isinstance(settings.get(parts[0], {}), dict):
        raise ConfigError(
            f"--set {shortened(override)}: {parts[0]} is not a section; sections are {', '.join(_known(()))}."
        )
    inner: Any = settings
    for depth, part in enumerate(parts):
        is_table = isinstance(inner, dict) and not part.isdecimal()  # no setting is called by a number
        place = part if is_table else _index([] if inner == {} else inner, parts, depth, override)
        if depth == len(parts) - 1:
            inner[place] = _value(text, override)
        else:
            inner = inner.setdefault(place, {}) if isinstance(inner, dict) else inner[place]


def _index(inner: Any, parts: Sequence[str], depth: int, override: str) -> int:
    """Return which entry of the list `inner` the part at `depth` names. Raises ConfigError where there is none."""
    name, part, said = ".".join(parts[:depth]), shortened(parts[depth]), f"--set {shortened(override)}"
    if not isinstance(inner, list):
        raise ConfigError(f"{said}: {name} is {shortened(repr(inner))}, which has no {part}; set {name} itself.")
    if not (part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(inner)):
        there = f"entries 0 to {len(inner) - 1}" if len(inner) > 1 else "entry 0 only" if inner else "no entries"
        raise ConfigError(f"{said}: {name} has no entry {part}, it has {there}; count from 0, or set the whole list.")
    return int(part)


def _value(text: str, override: str) -> Any:
    """Return the value that is written in an override: TOML, or else a string without quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {shortened(override)}: {_reason(error)}; change the value.") from None
    # No setting is a date or a time, but a folder may be named after a day.
    return text if isinstance(value, date | time) else value


def _known(location: tuple[str, ...]) -> list[str]:
    """Return the names that are allowed at `location` in a configuration."""
    model: type[BaseModel] = Config
    for name in (part for part in location if not part.isdecimal()):  # without places in lists
        annotation = model.model_fields[name].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)


def _explain(error: Any) -> str:
    """Write a pydantic error as `field=value: reason; fix`."""
    location = tuple(str(part) for part in error["loc"])
    name, kind = ".".join(location), error["type"]
    if kind == "value_error":  # our own checks write the whole line, with values of any length
        return _LONG_WORD.sub(lambda word: shortened(word[0]), str(error["ctx"]["error"]))
    if kind == "missing" and len(location) == 1:
        return f"{name}: required section and not there; add [{name}] to the file."
    if kind == "missing":
        return f"{name}: required and not set; add it to the file or pass --set {name}=..."
    shown = shortened(repr(error["input"]))
    if kind in ("path_type", "string_type"):
        return f"{name}={shown}: not a string; write it in quotes."
    if kind == "tuple_type":
        return f"{name}={shown}: not a list; write {name}={shortened(_as_list(error['input']))}."
    if kind in ("model_type", "dict_type"):
        return f"{name}={shown}: not a table of settings; known names here: {', '.join(_known(location))}."
    if kind == NO_SUCH_NAME:
        return f"{name}={shown}: {error['msg']}."
    if name in RENAMED:
        return f"{name}={shown}: is now called {RENAMED[name]}; write that name."
    if kind == "extra_forbidden":
        known = _known(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        fix = f"did you mean {near[0]}?" if near else f"known names here: {', '.join(known)}."
        return f"{shortened(name)}={shown}: no such setting; {fix}"
    return f"{name}={shown}: {error['msg'][0].lower()}{error['msg'][1:]}; change the value."


def _as_list(value: Any) -> str:
    """Return how a list of what was written is written: 1,4 is [1, 4], and wandb is ["wandb"]."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    try:
        tomllib.loads(f"value = [{text}]")
        return f"[{text}]"
    except (ValueError, RecursionError):
        return json.dumps([part.strip() for part in text.split(",")], ensure_ascii=False)
