"""What all sections of a configuration have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from megatron_rapo.errors import InputError

FilePath = Annotated[Path, Field(strict=False)]


class ConfigError(InputError):
    """A setting that cannot work: `section.field=value: reason; fix`."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
