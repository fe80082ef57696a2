"""Reading problems from a JSONL or Parquet file."""

from __future__ import annotations

import glob
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.types import Problem

JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIX = ".parquet"
ID_FIELDS = ("id", "unique_id")
"""Columns that name a row, the first one that is there."""

_Row = tuple[str, dict[str, Any]]  # where it stands ("train.jsonl:7"), its columns


class DataError(InputError):
    """A data set or tokenizer that cannot be used: `path:line: reason; fix.`"""


def load_problems(path: Path | str, *, problem_field: str = "problem", answer_field: str = "answer") -> list[Problem]:
    """The problems of a local file, in its order; a number as an answer becomes its decimal text.

    Nothing is downloaded or kept in a cache. `Problem.id` is the row's `id` or `unique_id`, or the
    file's stem and the row's index from 0; every column not used otherwise is in `Problem.extra`.
    Raises DataError at the first thing wrong, with the line of a JSONL file (from 1) or the row of a
    Parquet file (from 0).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path.")
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        rows = _jsonl_rows(path)
    elif suffix == PARQUET_SUFFIX:
        rows = _parquet_rows(path)
    else:
        supported = ", ".join((*JSONL_SUFFIXES, PARQUET_SUFFIX))
        raise DataError(f"{path}: the suffix {suffix!r} is not supported; convert it to one of {supported}.")
    problems = []
    for index, (place, row) in enumerate(rows):
        text = _take(row, problem_field, place, setting="data.problem_field")
        if not isinstance(text, str):
            raise DataError(f"{place}: {problem_field!r} is {_kind(text)}, not text; write a string there.")
        answer = _answer_text(_take(row, answer_field, place, setting="data.answer_field"), answer_field, place)
        for field, value in ((problem_field, text), (answer_field, answer)):
            if not value.strip():
                raise DataError(f"{place}: {field!r} is empty; fill it in or leave the row out.")
        extra = {name: value for name, value in row.items() if name not in (problem_field, answer_field)}
        identity = next((str(extra.pop(f)) for f in ID_FIELDS if extra.get(f) is not None), f"{path.stem}-{index}")
        problems.append(Problem(id=identity, text=text, answer=answer, extra=extra))
    if not problems:
        raise DataError(f"{path}: the data set is empty; name a file with at least one problem.")
    return problems


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    # Lines as text, not the library's JSON reader (datasets 5.2): that one turns strings that look like
    # dates into datetimes, large integers into floats and "42" among numbers into 42, fills missing
    # columns with None, and names no line in its errors.
    lines = _stream("text", path, encoding="utf-8-sig")
    try:
        for number, line in enumerate(lines, start=1):
            place, text = f"{path}:{number}", line["text"]
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{place}: not valid JSON ({error.msg}, column {error.colno}); write one object a line."
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{place}: {_kind(row)}, not a JSON object; write one object a line.")
            yield place, row
    except UnicodeDecodeError:
        raise DataError(f"{path}:{_first_line_not_utf8(path)}: not UTF-8; save the file as UTF-8.") from None


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        num_rows = pq.read_metadata(path).num_rows
    except pa.ArrowInvalid:
        raise DataError(f"{path}: not a Parquet file, or cut short; write or copy it again.") from None
    if num_rows == 0:  # the library fails on it (datasets 5.2: "BatchSize must be greater than 0")
        return
    for index, row in enumerate(_stream("parquet", path)):
        yield f"{path}:row {index}", dict(row)


def _stream(builder: str, path: Path, **options: Any) -> Iterator[Mapping[str, Any]]:
    """Rows through the datasets library, streamed: no Arrow copy of the file is written."""
    import datasets  # takes seconds to import

    # Streaming still takes a lock file in the cache folder. A path is read as a glob pattern.
    with tempfile.TemporaryDirectory() as cache_dir:
        yield from datasets.load_dataset(
            builder, data_files=glob.escape(str(path)), split="train", streaming=True, cache_dir=cache_dir, **options
        )


def _take(row: Mapping[str, Any], field: str, place: str, *, setting: str) -> Any:
    if field not in row:
        raise DataError(f"{place}: no column {field!r}; set {setting} to one of {', '.join(row) or '(none)'}.")
    if row[field] is None:
        raise DataError(f"{place}: {field!r} is null; fill it in or leave the row out.")
    return row[field]


def _answer_text(value: Any, field: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value)
    raise DataError(f"{place}: {field!r} is {_kind(value)}, not text or a number; write a string there.")


def _kind(value: Any) -> str:
    """A value as its own author wrote it, for messages."""
    if isinstance(value, (dict, list)):
        return "a JSON object" if isinstance(value, dict) else "a list"
    return repr(value)


def _first_line_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path}: every line is UTF-8")
