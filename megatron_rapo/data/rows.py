"""Read the rows of a local file, each with its place for messages, and convert values to text."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rapo.data.numbers import WrittenNumber, decimal_text, without_exponent
from megatron_rapo.data.parquet import ParquetError, Unread, parquet_rows
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.safe_json import JSONError, parse_json

LONGEST_SHOWN = 80  # characters of a value in a message
Row = tuple[str, dict[str, Any]]
"""Place of a row ("train.jsonl:7"), and its columns."""


class DataError(InputError):
    """A data set or tokenizer cannot be used. The message is `path:line: reason; fix.`"""


def read_rows(path: Path, suffixes: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file in order. Accept only `suffixes`; by default, all supported ones.

    Downloads and caches nothing. Raises DataError at the first fault, with the line of a text file (from 1) or the row
    of a Parquet or JSON file (from 0).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path.")
    suffix, supported = path.suffix.lower(), tuple(READERS) if suffixes is None else suffixes
    if suffix not in supported:
        raise DataError(f"{path}: the suffix {suffix!r} is not supported; convert it to one of {', '.join(supported)}.")
    try:
        yield from READERS[suffix](path)
    except UnicodeDecodeError:
        raise DataError(f"{path}:{_first_line_not_utf8(path)}: not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions.") from None


def text_of(value: Any, field: str, place: str) -> str:
    """Return a text unchanged, or a number in positional notation with its digits as written."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and (text := decimal_text(value)) is not None:
        return text
    raise DataError(f"{place}: {field!r} is {kind_of(value)}, not text or a number; write a string there.")


def answer_text(value: Any, field: str, place: str) -> str:
    """Return an answer as `text_of` does, but the text "5e-05" (a float printed by a program) as "0.00005"."""
    return without_exponent(text_of(value, field, place))


def kind_of(value: Any) -> str:
    """Describe a value for messages: as it is written, cut to LONGEST_SHOWN characters."""
    if isinstance(value, Unread):
        return f"of type {value.kind}"
    if isinstance(value, (dict, list)):
        return "a JSON object" if isinstance(value, dict) else "a list"
    text = value.text if isinstance(value, WrittenNumber) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # We do not use the reader of the datasets library (5.2). It turns strings that look like dates into datetimes,
    # large integers into floats and "42" among numbers into 42, fills missing columns with None, and does not name the
    # line in its errors.
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            place, text = f"{path}:{number}", line.rstrip("\n")
            if not text.strip():
                continue
            try:
                row = parse_json(text, parse_float=WrittenNumber)
            except JSONError as error:
                reason = str(error).replace(", line 1, column", ", column")  # `place` has the real line number
                raise DataError(f"{place}: {reason}; write one object a line.") from None
            if not isinstance(row, dict):
                raise DataError(f"{place}: {kind_of(row)}, not a JSON object; write one object a line.")
            yield place, row


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        rows = parse_json(path.read_text(encoding="utf-8-sig"), parse_float=WrittenNumber)
    except JSONError as error:
        raise DataError(f"{path}: {error}; fix it, or rename a file of one object per line to .jsonl.") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: {kind_of(rows)}, not a list of JSON objects; write one.")
    for index, row in enumerate(rows):
        place = f"{path}:row {index}"
        if not isinstance(row, dict):
            raise DataError(f"{place}: {kind_of(row)}, not a JSON object; write a list of objects.")
        yield place, row


def _csv_rows(path: Path) -> Iterator[Row]:
    # We do not use the reader of pandas, which turns text that looks like a number into a number: "007" becomes 7.
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            columns = next(lines, [])
            if twice := next((name for name in columns if columns.count(name) > 1), None):
                raise DataError(f"{path}:{lines.line_num}: two columns are called {twice!r}; rename one.")
            for values in lines:
                place = f"{path}:{lines.line_num}"
                if values and len(values) != len(columns):
                    raise DataError(
                        f"{place}: {len(values)} values under {len(columns)} columns; put a value with a comma in it "
                        "between double quotes."
                    )
                if values:
                    yield place, dict(zip(columns, values, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{lines.line_num}: not valid CSV ({error}); fix that line.") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        for index, row in enumerate(parquet_rows(path)):
            yield f"{path}:row {index}", row
    except ParquetError as error:
        raise DataError(f"{path}: {error}.") from None


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
}
"""Functions that read a file, by its suffix."""


def _first_line_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path}: every line is UTF-8")
