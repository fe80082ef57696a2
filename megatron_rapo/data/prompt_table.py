"""Prompts in Arrow's file format: made piece by piece, mapped into memory, and turned into objects one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import xxhash

from megatron_rapo.data.node_file import NodeFile
from megatron_rapo.types import Problem, Prompt

ROWS = 8192  # of every piece but the last
_DIGEST = b"digest"


@dataclass(frozen=True)
class Piece:
    """Problems in a row with their prompts; a problem whose prompt is too long is among them."""

    problems: Sequence[Problem]
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]


class ContentDigest:
    """xxh3_128 over prompts in order: each problem's text and answer, and the prompt's token ids.

    Ids and other columns do not count: the same problems under another file name are the same.
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
    """Write `pieces` to a binary file or an Arrow stream. Longer prompts than the limit do not count for the digest."""
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
    """What `write_table` wrote, in a buffer: a mapped file is read from the disk where it is asked for."""

    def __init__(self, buffer: Any, file: NodeFile | None = None) -> None:
        """`buffer` is that of `file`, where there is one."""
        import pyarrow as pa

        reader = pa.ipc.open_file(buffer)
        found = [reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)]
        self._batches, self.file = [each.batch for each in found], file
        self.digest = found[-1].custom_metadata[_DIGEST].decode() if found else ContentDigest().hexdigest()
        offsets = [batch.column("token_ids").offsets.to_numpy() for batch in self._batches]
        self.num_tokens = np.concatenate([np.zeros(0, np.int64), *map(np.diff, offsets)])  # [rows] of each prompt

    def problem(self, row: int) -> Problem:
        extra = self._text("extra", row)
        return Problem(
            id=self._text("id", row),
            text=self._text("problem", row),
            answer=self._text("answer", row),
            extra=json.loads(extra) if extra else {},
        )

    def prompt(self, row: int) -> Prompt:
        ids = self._cell("token_ids", row).values.to_numpy()
        return Prompt(problem=self.problem(row), text=self._text("prompt", row), token_ids=tuple(ids.tolist()))

    def _text(self, column: str, row: int) -> Any:
        return self._cell(column, row).as_py()

    def _cell(self, column: str, row: int) -> Any:
        batch, place = divmod(int(row), ROWS)
        return self._batches[batch].column(column)[place]


@dataclass(frozen=True)
class StoredProblems(Sequence[Problem]):
    """Some rows of a table as problems, each made when it is asked for."""

    table: PromptTable
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        if isinstance(index, slice):
            return StoredProblems(self.table, self.rows[index])
        return self.table.problem(self.rows[index])


@dataclass(frozen=True)
class StoredPrompts(Sequence[Prompt]):
    """Some rows of a table as prompts, each made when it is asked for."""

    table: PromptTable
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return StoredPrompts(self.table, self.rows[index])
        return self.table.prompt(self.rows[index])
