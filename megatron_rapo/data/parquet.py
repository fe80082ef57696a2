"""Read the rows of a Parquet file: text, numbers, booleans, and lists and structs of them.

Other columns (bytes, images, audio, dates) are not read from the disk. Metadata beyond the columns' types, such as the
features that the datasets library decodes, is ignored. So nothing is downloaded and no other file is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rapo.data.numbers import WrittenNumber

ROWS_AT_A_TIME = 1024
Convert = Callable[[Any], Any]  # converts a value that is not null


class ParquetError(ValueError):
    """The file cannot be read as Parquet. The message is the reason."""


@dataclass(frozen=True)
class Unread:
    """Placeholder in a row for the value of a column that is not read, because of its type."""

    kind: str  # the Arrow type


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows in order, with ROWS_AT_A_TIME rows in memory. Raises ParquetError for any fault."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
                raise ParquetError(f"two columns are called {twice!r}; rename one")
            converters = {field.name: _converter(field.type) for field in schema}
            read = [name for name, convert in converters.items() if convert]
            unread = {field.name: Unread(str(field.type)) for field in schema if not converters[field.name]}
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=read):
                columns = {name: _values(batch.column(name), converters[name]) for name in read}
                for index in range(batch.num_rows):
                    yield {name: columns[name][index] if name in columns else unread[name] for name in schema.names}
    except UnicodeDecodeError:
        raise ParquetError("has text that is not UTF-8; write it again as UTF-8") from None
    except (pa.ArrowException, OSError, RecursionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ParquetError(
            f"not a Parquet file that can be read, or damaged ({reason}); write or copy it again"
        ) from None


def _values(column: Any, convert: Convert | None) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if convert is None or convert is _same:
        return values
    return [None if value is None else convert(value) for value in values]


def _converter(kind: Any) -> Convert | None:
    """Return the function that converts values of this Arrow type, or None for a type that is not read.

    Float16 and float32 get the digits that they need in that precision: 0.1, not 0.10000000149011612.
    """
    from pyarrow import types

    if types.is_dictionary(kind):
        return _converter(kind.value_type)
    if types.is_float16(kind):
        return lambda value: WrittenNumber(str(np.float16(value)))
    if types.is_float32(kind):
        return lambda value: WrittenNumber(str(np.float32(value)))
    if types.is_decimal(kind):
        return lambda value: WrittenNumber(str(value))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _converter(kind.value_type)
        return (lambda value: [each if each is None else inner(each) for each in value]) if inner else None
    if types.is_struct(kind):
        return _struct({field.name: _converter(field.type) for field in kind})
    text = types.is_string(kind) or types.is_large_string(kind)
    number = types.is_integer(kind) or types.is_boolean(kind) or types.is_float64(kind)
    return _same if text or number or types.is_null(kind) else None


def _struct(converters: dict[str, Convert | None]) -> Convert | None:
    inner = {name: convert for name, convert in converters.items() if convert}
    if len(inner) < len(converters):
        return None
    return lambda value: {name: each if each is None else inner[name](each) for name, each in value.items()}


def _same(value: Any) -> Any:
    return value
