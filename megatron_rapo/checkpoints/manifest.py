"""Write digests of a checkpoint's files when it is complete, and verify them when it is loaded.

A digest (XXH3, 128 bits) covers a range of bytes. A tensor file has one for each chunk, so a chunk can be verified
without reading the rest. Any other file has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.errors import shortened
from megatron_rapo.runtime.atomic_write import write_text_atomically
from megatron_rapo.runtime.safe_json import read_json

MANIFEST = "manifest.json"
BLOCK_BYTES = 2**22


class Range(NamedTuple):
    """A range of a file's bytes with its digest."""

    start: int
    length: int
    digest: str


class Manifest:
    """The manifest of one folder. Raises CheckpointError if it is missing or cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            content = read_json(folder / MANIFEST)
            self._files = {name: [_range(*each) for each in ranges] for name, ranges in content["files"].items()}
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: has no {MANIFEST}, so it is incomplete; take another.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / MANIFEST}: cannot be read ({error!r}); it is damaged, take another checkpoint."
            ) from None

    @property
    def files(self) -> list[str]:
        return sorted(self._files)

    def verify(self, names: Iterable[str]) -> None:
        """Read the named files. Raises CheckpointError for the first whose content changed since it was written."""
        for name in names:
            path, ranges = self._folder / name, self._files[name]
            size = max((each.start + each.length for each in ranges), default=0)
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing; take another checkpoint.")
            if path.stat().st_size != size:
                raise CheckpointError(
                    f"{path}: has {path.stat().st_size:,} bytes instead of {size:,}; it is truncated or was "
                    "overwritten, take another checkpoint."
                )
            for each, found in zip(ranges, digests(path, [(r.start, r.length) for r in ranges]), strict=True):
                if each != found:
                    raise CheckpointError(_damaged(path, each))

    def verify_range(self, name: str, start: int, content: bytes | memoryview) -> None:
        """Verify bytes read from `start` of a file, which must be one of its ranges. Raises CheckpointError."""
        expected = next((each for each in self._files.get(name, []) if each.start == start), None)
        found = Range(start, len(content), xxhash.xxh3_128_hexdigest(content))
        if expected != found:
            raise CheckpointError(_damaged(self._folder / name, expected or found))


def digests(path: Path, places: Iterable[tuple[int, int]]) -> list[Range]:
    """Digest ranges of a file, given as (start, length) in bytes. Raises OSError."""
    found = []
    with open(path, "rb", buffering=0) as stream:
        for start, length in places:
            stream.seek(start)
            state, left = xxhash.xxh3_128(), length
            while left and (block := stream.read(min(left, BLOCK_BYTES))):
                state.update(block)
                left -= len(block)
            found.append(Range(start, length - left, state.hexdigest()))
    return found


def whole(path: Path) -> list[Range]:
    """Digest a file as one range. Raises OSError."""
    return digests(path, [(0, path.stat().st_size)])


def write_manifest(folder: Path, files: Mapping[str, Sequence[Range]]) -> None:
    """Write the manifest of `folder`. The ranges of each file are in order, and the last one ends with the file."""
    text = json.dumps({"digest": "xxh3_128", "files": files}, indent=1)
    write_text_atomically(folder / MANIFEST, text + "\n")


def _range(start: object, length: object, digest: object) -> Range:
    """Return a range as read from a manifest. Raises TypeError if it is invalid."""
    if type(start) is int and type(length) is int and isinstance(digest, str) and 0 <= start <= start + length < 2**63:
        return Range(start, length, digest)
    raise TypeError(f"{shortened(repr((start, length, digest)))} is no range of bytes with its digest")


def _damaged(path: Path, where: Range) -> str:
    return (
        f"{path}: bytes {where.start:,} to {where.start + where.length:,} have changed since they were written; the "
        "file is damaged, take another checkpoint."
    )
