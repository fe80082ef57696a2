"""Prepare a published data set for training: write a file of clean problems and a manifest of what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from megatron_rapo import __version__
from megatron_rapo.data.contamination import NGRAM, Overlap, overlaps
from megatron_rapo.data.prepared_file import check_output, file_digest, write_prepared
from megatron_rapo.data.records import REQUIRED, Record, to_records
from megatron_rapo.data.references import unparsable
from megatron_rapo.data.rows import READERS, DataError, read_rows
from megatron_rapo.data.sources import SOURCES, USUAL_FIELDS, Fields, download_original, find_original
from megatron_rapo.data.text_normalization import normalised
from megatron_rapo.types import Outcome

CONTAMINATED, UNPARSABLE = "contaminated", "unparsable"
"""Faults of a problem that are reported. Such problems are dropped only on request."""
OVERLAP = 0.5
"""Default of Request.overlap."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to prepare, and how."""

    source: str  # a name in sources.SOURCES, or a file
    output: Path
    original: Path | None = None  # file or folder to read a named source from, instead of the hub
    revision: str = "main"  # branch, tag or commit on the hub
    fields: Mapping[str, str] = field(default_factory=dict)  # field -> column, for columns with unusual names
    answer_after: str | None = None  # the mark before the answer
    name: str | None = None  # of the data set in a file; default: the file's stem
    licence: str | None = None
    against: tuple[Path, ...] = ()  # files whose problems should not be in the data set
    overlap: float = OVERLAP  # share of common n-grams from which a problem counts as contaminated
    drop: tuple[str, ...] = ()  # CONTAMINATED, UNPARSABLE or both
    overwrite: bool = False


class Original(NamedTuple):
    """An original data set."""

    name: str
    path: Path
    about: dict[str, Any]  # for the manifest
    fields: Fields
    answer_after: str | None


Dropped = dict[str, list[dict[str, str]]]
"""Reason -> ids of the dropped rows. A duplicate also has the id of the row that was kept, under "of"."""


def prepare(request: Request) -> dict[str, Any]:
    """Write `request.output` and its manifest. Return the manifest (docs/data.md describes it).

    Raises DataError for any fault of the request or the files.
    """
    _check(request)
    check_output(request.output, overwrite=request.overwrite)
    against = [_known_problems(path) for path in request.against]
    original = _original(request)
    records = to_records(
        read_rows(original.path),
        original.name,
        original.fields,
        required=REQUIRED | set(request.fields),
        answer_after=original.answer_after,
    )
    _check_rows(request.source, original.path, len(records))
    kept, dropped = without_doubles(records)
    unread = _unparsable(kept)
    pairs = [_pairs(kept, known, request.overlap) for known in against]
    if UNPARSABLE in request.drop:
        kept = _drop(kept, {row["id"] for row in unread}, "unparsable reference", dropped)
    if CONTAMINATED in request.drop:
        kept = _drop(kept, {pair["id"] for each in pairs for pair in each["contaminated"]}, CONTAMINATED, dropped)
    if not kept:
        reasons = ", ".join(f"{len(rows)} {reason}" for reason, rows in dropped.items() if rows)
        raise DataError(f"{original.path}: no problem is left ({reasons or 'it has no rows'}); name another file.")
    manifest = {
        "source": original.about,
        "rows": {"read": len(records), "written": len(kept), "dropped": len(records) - len(kept)},
        "dropped": dropped,
        "unparsable": unread,
        "contamination": {"ngram": NGRAM, "overlap": request.overlap, "against": pairs},
        "arguments": _arguments(request),
        "versions": {"megatron-rapo": __version__, **{name: version(name) for name in ("math-verify", "pyarrow")}},
    }
    return write_prepared(request.output, kept, manifest)


def without_doubles(records: Sequence[Record]) -> tuple[list[Record], Dropped]:
    """Return the records with a problem and an answer, only the first of equal problems, and the dropped ones."""
    reasons = ("empty problem", "empty answer", "duplicate", "duplicate with another answer")
    dropped: Dropped = {reason: [] for reason in reasons}
    first: dict[str, Record] = {}
    for record in records:
        key = normalised(record.problem)
        if not key:
            dropped["empty problem"].append({"id": record.id})
        elif not record.answer:
            dropped["empty answer"].append({"id": record.id})
        elif key in first:
            same = normalised(record.answer) == normalised(first[key].answer)
            reason = "duplicate" if same else "duplicate with another answer"
            dropped[reason].append({"id": record.id, "of": first[key].id})
        else:
            first[key] = record
    return list(first.values()), dropped


def _check(request: Request) -> None:
    if unknown := [name for name in request.fields if name not in USUAL_FIELDS]:
        raise DataError(f"--field {unknown[0]}=...: no such field; fields are {', '.join(USUAL_FIELDS)}.")
    if not 0 < request.overlap <= 1:
        raise DataError(f"--overlap {request.overlap}: not a share; pass a number above 0 and at most 1.")
    if CONTAMINATED in request.drop and not request.against:
        raise DataError(f"--drop {CONTAMINATED}: nothing to compare with; pass --against FILE.")
    if request.output in request.against:
        raise DataError(f"--against {request.output}: is OUTPUT itself; leave it out.")
    if request.source in SOURCES and (request.name or request.licence):
        raise DataError(f"--name, --licence: those of {request.source} are known; leave them out.")
    if request.source not in SOURCES and request.original:
        raise DataError(f"--from {request.original}: {request.source} is itself a file; leave one of them out.")


def _original(request: Request) -> Original:
    """Find or download the original data set."""
    mapped = {name: (column,) for name, column in request.fields.items()}
    if request.source in SOURCES:
        source = SOURCES[request.source]
        about: dict[str, Any] = {"name": request.source, "title": source.title, "licence": source.licence}
        if request.original:
            path = find_original(request.source, request.original, request.revision)
            about |= {"file": str(path)}
        else:
            path, commit = download_original(request.source, request.revision)
            about |= {"repository": source.repository, "file": source.file, "commit": commit}
        fields, answer_after = {**source.fields, **mapped}, request.answer_after or source.answer_after
        name = request.source
    else:
        path = Path(request.source)
        if not path.is_file():
            raise DataError(
                f"SOURCE={request.source}: no file, and no data set with that name; names are {', '.join(SOURCES)}, "
                f"files end in {', '.join(READERS)}."
            )
        name = request.name or path.stem
        about = {"name": name, "licence": request.licence, "file": str(path)}
        fields, answer_after = {**USUAL_FIELDS, **mapped}, request.answer_after
    return Original(name, path, {**about, "sha256": file_digest(path)}, fields, answer_after)


def _check_rows(source: str, path: Path, rows: int) -> None:
    if source in SOURCES and rows != SOURCES[source].rows:
        raise DataError(
            f"{path}: has {rows:,} rows, but {source} has {SOURCES[source].rows:,}; use the original file, or pass the "
            "path of this file as SOURCE."
        )


class _Known(NamedTuple):
    """Problems of another file."""

    path: Path
    ids: list[str]
    texts: list[str]


def _known_problems(path: Path) -> _Known:
    known = _Known(path, [], [])
    for index, (place, row) in enumerate(read_rows(path)):
        if not isinstance(row.get("problem"), str):
            raise DataError(f"--against {place}: no text in a column 'problem'; prepare that file first.")
        known.ids.append(str(row.get("id", f"{path.stem}/{index}")))
        known.texts.append(row["problem"])
    return known


def _unparsable(records: Sequence[Record]) -> list[dict[str, str]]:
    outcomes: dict[str, Outcome] = unparsable([record.answer for record in records])
    return [
        {"id": record.id, "answer": record.answer, "outcome": outcomes[record.answer].value}
        for record in records
        if record.answer in outcomes
    ]


def _pairs(records: Sequence[Record], known: _Known, threshold: float) -> dict[str, Any]:
    """Return the manifest's part on overlaps with `known`: contaminated pairs, and pairs below the threshold."""
    found = overlaps([record.problem for record in records], known.texts)

    def shown(pair: Overlap) -> dict[str, Any]:
        return {"id": records[pair.here].id, "with": known.ids[pair.there], "overlap": round(pair.share, 4)}

    return {
        "file": str(known.path),
        "sha256": file_digest(known.path),
        "problems": len(known.ids),
        "contaminated": [shown(pair) for pair in found if pair.share >= threshold],
        "below": [shown(pair) for pair in found if pair.share < threshold],
    }


def _drop(records: Sequence[Record], ids: set[str], reason: str, dropped: Dropped) -> list[Record]:
    dropped[reason] = [{"id": record.id} for record in records if record.id in ids]
    return [record for record in records if record.id not in ids]


def _arguments(request: Request) -> dict[str, Any]:
    """Return the command-line arguments that determine the output."""
    return {
        "source": request.source,
        "from": request.original and str(request.original),
        "revision": request.revision,
        "field": dict(request.fields),
        "answer_after": request.answer_after,
        "name": request.name,
        "licence": request.licence,
        "against": [str(path) for path in request.against],
        "overlap": request.overlap,
        "drop": sorted(request.drop),
    }
