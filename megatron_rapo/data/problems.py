"""Read problems from a JSONL or Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_rapo.data.numbers import plain
from megatron_rapo.data.parquet import Unread
from megatron_rapo.data.rows import DataError, answer_text, kind_of, read_rows
from megatron_rapo.types import Problem
from megatron_rapo.verifier import MAX_READ_CHARS

SUFFIXES = (".jsonl", ".ndjson", ".parquet")
ID_FIELDS = ("id", "unique_id")
"""Columns with the id of a row; the first existing one counts."""


def load_problems(path: Path | str, *, problem_field: str = "problem", answer_field: str = "answer") -> list[Problem]:
    """Return the problems of a local file in a list. See `read_problems`."""
    return list(read_problems(path, problem_field=problem_field, answer_field=answer_field))


def read_problems(
    path: Path | str, *, problem_field: str = "problem", answer_field: str = "answer"
) -> Iterator[Problem]:
    """Yield the problems of a local file in order. A numeric answer becomes its decimal text.

    Downloads and caches nothing. `Problem.id` is the row's `id` or `unique_id`, or else the file's stem and the row's
    index from 0. `Problem.extra` has all columns that are not used otherwise. Raises DataError at the first fault, with
    the line of a JSONL file (from 1) or the row of a Parquet file (from 0).
    """
    path, used = Path(path), (problem_field, answer_field)
    index = -1
    for index, (place, row) in enumerate(read_rows(path, SUFFIXES)):
        text = _take(row, problem_field, place, setting="data.problem_field")
        if not isinstance(text, str):
            raise DataError(f"{place}: {problem_field!r} is {kind_of(text)}, not text; write a string there.")
        answer = answer_text(_take(row, answer_field, place, setting="data.answer_field"), answer_field, place)
        if len(answer) > MAX_READ_CHARS:
            raise DataError(
                f"{place}: {answer_field!r} has {len(answer):,} characters, and the verifier reads at most "
                f"{MAX_READ_CHARS:,}; write the answer alone."
            )
        for field, value in ((problem_field, text), (answer_field, answer)):
            if not value.strip():
                raise DataError(f"{place}: {field!r} is empty; fill it in or leave the row out.")
        extra = {name: plain(v) for name, v in row.items() if name not in used and not isinstance(v, Unread)}
        identity = next((str(extra.pop(f)) for f in ID_FIELDS if extra.get(f) is not None), f"{path.stem}-{index}")
        yield Problem(id=identity, text=text, answer=answer, extra=extra)
    if index < 0:
        raise DataError(f"{path}: the data set is empty; name a file with at least one problem.")


def _take(row: dict[str, Any], field: str, place: str, *, setting: str) -> Any:
    if field not in row:
        raise DataError(f"{place}: no column {field!r}; set {setting} to one of {', '.join(row) or '(none)'}.")
    if row[field] is None:
        raise DataError(f"{place}: {field!r} is null; fill it in or leave the row out.")
    return row[field]
