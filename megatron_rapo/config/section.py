"""Base class and types of all sections."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from megatron_rapo.builtin_names import is_reference
from megatron_rapo.errors import InputError, printable

MAX_STEPS, MAX_SIZE, MAX_SECONDS, MAX_VALUE = 10**9, 2**14, 7 * 86400.0, 1e6
"""Upper bounds of settings: steps and counts of them; processes, samples or completions; seconds; rewards and
coefficients. A larger value is a typing error, and some libraries fail on it only long after the start."""
MAX_TOKENS, MAX_MIB = 2**30, 2**24
"""Upper bounds of the tokens of a sequence or micro-batch, and of the memory of a process in MiB (16 TiB)."""
MAX_NUMBER = 1e12
"""Upper bound of a number in any setting."""


def _named(value: Any) -> Any:
    """Refuse text that names no file."""
    if value == "":
        raise PydanticCustomError("no_path", "is empty, and a path is needed")
    return value


def _usable(path: Path) -> Path:
    """Refuse a path that no file can have, before the operating system fails on it."""
    text = str(path)
    if printable(text) != text or "\n" in text or "\t" in text:
        raise PydanticCustomError("bad_path", "has a character that cannot be shown, and no path should")
    if len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise PydanticCustomError("long_path", "is longer than a path can be (a name: 255 bytes, all: 4000)")
    return path


FilePath = Annotated[Path, Field(strict=False), BeforeValidator(_named), AfterValidator(_usable)]


@dataclass(frozen=True)
class OpenChoice:
    """Annotate a string that is one of `names`, or that names the user's own code."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the names, and the two forms of the user's own, for docs/settings.md."""
        return {"enum": [*self.names, "MODULE:NAME", "FILE.py:NAME"]}

    def check(self, value: str) -> str:
        """Refuse a name that is not there."""
        if value in self.names or is_reference(value):
            return value
        raise PydanticCustomError(
            NO_SUCH_NAME,
            "no such name; use one of {names}, or your own as MODULE:NAME or FILE.py:NAME (docs/extending.md)",
            {"names": ", ".join(self.names)},
        )


NO_SUCH_NAME = "no_such_name"
"""Kind of pydantic's error for an unknown name."""


class ConfigError(InputError):
    """A setting that cannot work: `section.field=value: reason; fix`."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Refuse a number that no setting can have, also within a list."""
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, int | float) and not abs(each) <= MAX_NUMBER:
                raise PydanticCustomError("too_large", "is beyond 1e12, which no setting can be")
        return value
