"""What data preparation writes: a Parquet file of one schema, and a manifest beside it that says where it is from."""

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
"""Columns that every row fills; the others are null where a data set does not say. All are strings."""


def manifest_path(output: Path) -> Path:
    return output.with_suffix(".manifest.json")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Make the folder. Raises DataError where the file could not be written, or is there and not to be replaced."""
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
    """Write both files, each whole or not at all, and give back the manifest, now with the file's digest.

    The manifest is the last to have its name, and an earlier one is the first to go: where it is, both are whole.
    The same records give the same bytes. Raises DataError where the disk does not take them.
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
    """Return the file's SHA-256 in hex, like sha256sum and the Hugging Face hub."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
