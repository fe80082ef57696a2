"""Write a prepared data set: a Parquet file with a fixed schema, and beside it a manifest of its origin."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_rapo.data.records import Record
from megatron_rapo.data.rows import DataError
from megatron_rapo.runtime.atomic_write import explained, replacing

SUFFIX = ".parquet"
NOT_NULL = ("id", "problem", "answer", "source")
"""Columns without nulls. The others may be null. All columns are strings."""


def manifest_path(output: Path) -> Path:
    """Return the path of the manifest of the prepared file `output`."""
    return output.with_suffix(".manifest.json")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Create the folder of `output`. Raises DataError if the file cannot be written or must not be replaced."""
    if output.suffix != SUFFIX:
        raise DataError(f"OUTPUT={output}: prepared files are Parquet; name one that ends in {SUFFIX}.")
    there = next((path for path in (output, manifest_path(output)) if path.exists()), None)
    if there and not overwrite:
        raise DataError(f"OUTPUT={output}: {there} exists already; name another file, or pass --overwrite.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(output.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DataError(f"OUTPUT={output}: {explained(error, output.parent)}") from None


def write_prepared(output: Path, records: Sequence[Record], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files atomically. Return the manifest with the file's digest added.

    An older manifest is removed first, and the new one gets its name last. So if there is a manifest, both files are
    complete. The same records give the same bytes. Raises DataError if the disk does not accept them.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = pa.schema([pa.field(f.name, pa.string(), nullable=f.name not in NOT_NULL) for f in fields(Record)])
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=schema)
    try:
        with replacing(manifest_path(output)) as partial_manifest, replacing(output) as partial:
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
            whole = {**manifest, "sha256": file_digest(partial)}
            text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
            partial_manifest.write_text(text, encoding="utf-8")
            manifest_path(output).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"OUTPUT={output}: {explained(error, output.parent)}") from None
    return whole


def file_digest(path: Path) -> str:
    """Return the file's SHA-256 in hex, as sha256sum and the Hugging Face hub show it."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
