"""Convert rows of any data set to records, which have the columns of prepared files."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from megatron_rapo.data.rows import DataError, Row, answer_text, kind_of, text_of
from megatron_rapo.data.sources import Fields

REQUIRED = frozenset({"problem", "answer"})


@dataclass(frozen=True, kw_only=True)
class Record:
    """One problem. Fields that the data set does not have are None."""

    id: str  # SOURCE/ID with the data set's own id, else SOURCE/INDEX with the row's index from 0
    problem: str
    answer: str
    source: str
    subject: str | None
    level: str | None
    solution: str | None


def to_records(
    rows: Iterable[Row], source: str, fields: Fields, *, required: Set[str] = REQUIRED, answer_after: str | None = None
) -> list[Record]:
    """Convert `rows` to records, in their order. A null problem or answer becomes an empty string.

    With `answer_after` ("####"), the answer is the text after its last occurrence (empty without one), and the solution
    is the text before it. A list of answers is joined by commas. Raises DataError, with the place, for a missing
    column, a value that is neither text nor a number, and a duplicate id.
    """
    records: list[Record] = []
    places: dict[str, str] = {}
    for index, (place, row) in enumerate(rows):
        values = {name: _value(row, name, columns, place, name in required) for name, columns in fields.items()}
        problem, answer, solution = values["problem"] or "", values["answer"] or "", values.get("solution")
        if answer_after is not None:
            before, mark, after = answer.rpartition(answer_after)
            solution, answer = (before.strip(), after) if mark else (solution, "")
        record = Record(
            id=f"{source}/{values.get('id') or index}",
            problem=problem.strip(),
            answer=answer.strip(),
            source=source,
            subject=values.get("subject"),
            level=values.get("level"),
            solution=solution,
        )
        if record.id in places:
            raise DataError(
                f"{place}: the id {record.id!r} is also that of {places[record.id]}; pass --field id=COLUMN with "
                "another column."
            )
        places[record.id] = place
        records.append(record)
    return records


def _value(row: dict[str, Any], name: str, columns: Iterable[str], place: str, required: bool) -> str | None:
    """Return the text of the first column that exists. Return None for null, or if an optional column is missing."""
    for column in columns:
        there, value = _look_up(row, column)
        if there:
            return None if value is None else _text(value, name, column, place)
    if required:
        raise DataError(
            f"{place}: no column {' or '.join(map(repr, columns))}; pass --field {name}=COLUMN with one of "
            f"{', '.join(_all_columns(row)) or '(none)'}."
        )
    return None


def _look_up(row: dict[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether a column exists, and its value. "a.b" may be the field b of the struct a."""
    if column in row:
        return True, row[column]
    outer, dot, inner = column.partition(".")
    if dot and isinstance(row.get(outer), dict):
        return _look_up(row[outer], inner)
    return False, None


def _all_columns(row: dict[str, Any]) -> list[str]:
    return [
        column
        for name, value in row.items()
        for column in ([f"{name}.{inner}" for inner in _all_columns(value)] if isinstance(value, dict) else [name])
    ]


def _text(value: Any, name: str, column: str, place: str) -> str:
    if name == "problem" and not isinstance(value, str):
        raise DataError(
            f"{place}: {column!r} is {kind_of(value)}, not text; pass --field problem=COLUMN with another column."
        )
    if isinstance(value, list):
        return (", " if name == "answer" else "\n\n").join(_text(each, name, column, place) for each in value)
    return (answer_text if name == "answer" else text_of)(value, column, place)
