"""Read templates from the user's files: TOML with the text around a problem, or Jinja."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10
    import tomli as tomllib

_TEXTS = ("before", "after")
_KEYS = (*_TEXTS, "stop")


def read_template(name: str) -> dict[str, Any]:
    """Return a file's content by the names of Template's fields. Raises InputError if the file is not valid."""
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"data.template={name}: no such file; check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"data.template={name}: not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise InputError(f"data.template={name}: cannot be read ({error.strerror}); give a file.") from None
    return {"jinja": text} if path.suffix == ".jinja" else _from_toml(name, text)


def _from_toml(name: str, text: str) -> dict[str, Any]:
    try:
        parts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"data.template={name}: not valid TOML ({error}); fix that line.") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or an integer with too many digits
        raise InputError(f"data.template={name}: not valid TOML ({type(error).__name__}); fix it.") from None
    if unknown := [key for key in parts if key not in _KEYS]:
        raise InputError(f"data.template={name}: {unknown[0]!r}: no such key; keys are {', '.join(_KEYS)}.")
    if not any(parts.get(key) for key in _TEXTS):
        raise InputError(f"data.template={name}: puts nothing around a problem; write before, after or both.")
    for key in _TEXTS:
        if not isinstance(parts.get(key, ""), str):
            raise InputError(f"data.template={name}: {key!r} is not a string; write one.")
    stop = parts.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(string, str) and string for string in stop):
        raise InputError(f"data.template={name}: 'stop' is not a list of non-empty strings; write one.")
    return {**parts, "stop": tuple(stop)}
