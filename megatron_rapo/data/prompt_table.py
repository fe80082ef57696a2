"""Store prompts in Arrow's file format: write them in pieces, map the file, and create objects one at a time."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
import xxhash

from megatron_rapo.data.node_shared_file import NodeFile
from megatron_rapo.types import Problem, Prompt

ROWS = 8192  # rows of each piece except the last
_DIGEST = b"digest"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """Consecutive problems with their prompts, including prompts that are too long."""

    problems: Sequence[Problem]
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]


class ContentDigest:
    """Digest (xxh3_128) of prompts in order: each problem's text and answer, and the prompt's token ids.

    Ids and other columns do not count, so the same problems in another file have the same digest.
    """

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, problem: Problem, token_ids: Sequence[int] | np.ndarray) -> None:
        for part in (problem.text.encode(), problem.answer.encode(), np.asarray(token_ids, "<i4").tobytes()):
            self._state.update(len(part).to_bytes(8, "little"))
            self._state.update(part)

    def hexdigest(self) -> str:
        return self._state.hexdigest()


def write_table(sink: Any, pieces: Iterable[Piece], max_prompt_tokens: int) -> None:
    """Write `pieces` to a binary file or an Arrow stream. Prompts above the limit do not count for the digest."""
    import pyarrow as pa  # type: ignore[import-untyped]

    text = pa.large_string()
    names = ("id", "problem", "answer", "extra", "prompt")
    schema = pa.schema([*((name, text) for name in names), ("token_ids", pa.large_list(pa.int32()))])
    digest = ContentDigest()
    with pa.ipc.new_file(sink, schema) as writer:
        for piece in pieces:
            tokens = [np.array(ids, np.int32) for ids in piece.token_ids]
            for problem, ids in zip(piece.problems, tokens, strict=True):
                if len(ids) <= max_prompt_tokens:
                    digest.update(problem, ids)
            ends = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
            columns = [
                pa.array([problem.id for problem in piece.problems], text),
                pa.array([problem.text for problem in piece.problems], text),
                pa.array([problem.answer for problem in piece.problems], text),
                pa.array([json.dumps(p.extra) if p.extra else None for p in piece.problems], text),
                pa.array(piece.texts, text),
                pa.LargeListArray.from_arrays(ends, np.concatenate(tokens)),
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=schema)
            writer.write_batch(batch, custom_metadata={_DIGEST: digest.hexdigest()})


class PromptTable:
    """Reads a table that `write_table` wrote. Parts of a mapped file are read from the disk on access."""

    def __init__(self, buffer: Any, file: NodeFile | None = None) -> None:
        """Open the table in `buffer`, which is the memory of `file` if there is a file."""
        import pyarrow as pa

        reader = pa.ipc.open_file(buffer)
        found = [reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)]
        self._batches, self.file = [each.batch for each in found], file
        self.digest = found[-1].custom_metadata[_DIGEST].decode() if found else ContentDigest().hexdigest()
        offsets = [batch.column("token_ids").offsets.to_numpy() for batch in self._batches]
        self.num_tokens = np.concatenate([np.zeros(0, np.int64), *map(np.diff, offsets)])  # [rows], tokens per prompt

    def problem(self, row: int) -> Problem:
        """Create the problem of a row."""
        extra = self._text("extra", row)
        return Problem(
            id=self._text("id", row),
            text=self._text("problem", row),
            answer=self._text("answer", row),
            extra=json.loads(extra) if extra else {},
        )

    def prompt(self, row: int) -> Prompt:
        """Create the prompt of a row."""
        ids = self._cell("token_ids", row).values.to_numpy()
        return Prompt(problem=self.problem(row), text=self._text("prompt", row), token_ids=tuple(ids.tolist()))

    def _text(self, column: str, row: int) -> Any:
        return self._cell(column, row).as_py()

    def _cell(self, column: str, row: int) -> Any:
        batch, place = divmod(int(row), ROWS)
        return self._batches[batch].column(column)[place]


@dataclass(frozen=True)
class _StoredRows(Sequence[Item]):
    """A sequence of some rows of a table, which creates each item on access."""

    table: PromptTable
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return type(self)(self.table, self.rows[index]) if isinstance(index, slice) else self._item(self.rows[index])

    @abstractmethod
    def _item(self, row: int) -> Item: ...


class StoredProblems(_StoredRows[Problem]):
    """Some rows of a table as problems."""

    def _item(self, row: int) -> Problem:
        return self.table.problem(row)


class StoredPrompts(_StoredRows[Prompt]):
    """Some rows of a table as prompts."""

    def _item(self, row: int) -> Prompt:
        return self.table.prompt(row)
