"""Describe every setting: name, type, unit, default, limits, effect, and what it needs and excludes.

Everything is read from the models' JSON schema: types, choices, limits and defaults from the fields, the rest from
their docstrings. A docstring says first what the setting does. Lines after a blank one are notes, each opened by one of
`NOTES`, say "Unit: tokens."
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_rapo.config.root import Config
from megatron_rapo.errors import InputError, shortened

NOTES = ("Unit", "Default", "Limits", "Needs", "Excludes", "Also called")
"""Notes of a docstring, in the order in which they are shown. Default and Limits say what the field cannot."""
ENTRY = "N"
"""The index of a list's entry in names, say in reward.functions.N.weight."""
_NOTE = re.compile(rf"({'|'.join(NOTES)}): ")
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
_Schema = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting. `name` is section.field; `default` is as TOML writes it, or "not set" or "required"."""

    name: str
    type: str
    default: str
    limits: str
    effect: str
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> str:
        """Type, unit, limits and default on one line."""
        default = self.default if self.default == "required" else f"default {self.default}"
        unit = f"unit: {self.notes['Unit']}" if "Unit" in self.notes else ""
        return "; ".join(filter(None, (self.type, unit, self.limits, default)))

    @property
    def remarks(self) -> dict[str, str]:
        """Return the notes that `facts` leaves out."""
        return {name: self.notes[name] for name in NOTES if name in self.notes and name != "Unit"}


@dataclass(frozen=True, kw_only=True)
class SectionDescription:
    """A section of the configuration file and its settings."""

    name: str
    purpose: str
    required: bool
    settings: tuple[Setting, ...]


def sections() -> list[SectionDescription]:
    """Return all sections, in the order of the configuration."""
    schema = Config.model_json_schema()
    found = []
    for name, reference in schema["properties"].items():
        section = _table(reference, schema)
        purpose = " ".join(section["description"].split())
        settings = tuple(_settings(section, schema, prefix=name))
        required = name in schema["required"]
        found.append(SectionDescription(name=name, purpose=purpose, required=required, settings=settings))
    return found


def select(name: str | None) -> list[SectionDescription]:
    """Return the sections with the settings that are called `name` or lie within it; all of them without a name.

    Raises InputError where there is no such section or setting.
    """
    everything = sections()
    if name is None:
        return everything
    section_name, *parts = name.split(".")
    section = next((each for each in everything if each.name == section_name), None)
    if section is None:
        raise InputError(_unknown(name, "section", [each.name for each in everything]))
    if not parts:
        return [section]
    wanted = ".".join([section_name, *(ENTRY if part.isdecimal() else part for part in parts)])
    chosen = tuple(each for each in section.settings if f"{each.name}.".startswith(f"{wanted}."))
    if not chosen:
        raise InputError(_unknown(name, "setting", [each.name for each in section.settings]))
    return [replace(section, settings=chosen)]


def _unknown(name: str, kind: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"settings: {shortened(name)}: no such {kind}; {guess}known here: {', '.join(known)}."


def _settings(table: _Schema, root: _Schema, *, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a table, each followed by those of the table that it holds."""
    for key, schema in table["properties"].items():
        name = f"{prefix}.{key}"
        effect, notes = _read_docstring(schema.get("description", ""))
        required = key in table.get("required", ())
        default = "required" if required else "not set" if schema["default"] is None else json.dumps(schema["default"])
        limits = "; ".join(filter(None, (_limits(schema), notes.pop("Limits", ""))))
        yield Setting(name=name, type=_type(schema), default=default, limits=limits, effect=effect, notes=notes)
        if inner := _table(schema, root):
            yield from _settings(inner, root, prefix=f"{name}.{ENTRY}" if schema.get("type") == "array" else name)


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a field's docstring into what the setting does and its notes."""
    effect, _, rest = text.partition("\n\n")
    pieces = _NOTE.split(" ".join(rest.split()))
    notes = {name: note.strip().removesuffix(".") for name, note in zip(pieces[1::2], pieces[2::2], strict=True)}
    return " ".join(effect.split()), notes


def _table(schema: _Schema, root: _Schema) -> _Schema:
    """Return the schema of the table that `schema` holds, alone, as an alternative or in a list; {} without one."""
    for each in (schema, *schema.get("anyOf", ()), schema.get("items", {})):
        if "$ref" in each:
            return dict(root["$defs"][each["$ref"].rpartition("/")[2]])
    return {}


def _type(schema: _Schema) -> str:
    """Return a type in words, with its choices."""
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each != {"type": "null"})
    if "enum" in schema:
        return _either([str(choice) for choice in schema["enum"]])
    if "const" in schema:
        return str(schema["const"])
    if "$ref" in schema:
        return "table"
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}, each: {_type(schema['prefixItems'][0])}"
    if schema["type"] == "array":
        return f"list, each: {_type(schema['items'])}"
    return "path" if schema.get("format") == "path" else _TYPES[schema["type"]]


def _either(choices: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def _limits(schema: _Schema) -> str:
    """Return the limits of a number in words; of each entry where the setting is a list."""
    inner = schema.get("prefixItems", [schema])[0]
    least, most = inner.get("minimum"), inner.get("maximum")
    above, below = inner.get("exclusiveMinimum"), inner.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f"{_number(least)} to {_number(most)}"
    ends = {"above": above, "at least": least, "below": below, "at most": most}
    return ", ".join(f"{words} {_number(end)}" for words, end in ends.items() if end is not None)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
