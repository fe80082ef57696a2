"""Print what the verifier says of completions in a file, as in training; exit status 0 whatever it says."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pydantic import ValidationError

from megatron_rapo.commands.arguments import command_parser
from megatron_rapo.config import RewardConfig
from megatron_rapo.data.rows import DataError, answer_text, kind_of, read_rows
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.atomic_write import explained
from megatron_rapo.types import Outcome
from megatron_rapo.verifier import MAX_READ_CHARS, VerifierPool
from megatron_rapo.verifier.worker_count import usable_cores

AT_A_TIME = 1000
"""Rows that are judged, then written."""


class _Row(NamedTuple):
    content: dict[str, Any]
    completion: str
    answer: str


def main(arguments: Sequence[str]) -> int:
    """Write each row of a file with its `verdict`, as JSON lines, and the number of each verdict to standard error.

    Raises InputError (DataError for a row) before anything is judged.
    """
    options = _parse(arguments)
    path, settings = options.file, _settings(options)
    if options.output and options.output.exists() and options.output.samefile(path):
        raise InputError(f"--output {options.output}: is the file that is judged; name another one.")
    rows = list(_rows(path))
    workers = options.workers or max(1, min(len(rows), usable_cores()))
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        output = _open(options.output, stack)
        pool = stack.enter_context(VerifierPool(workers, settings.timeout_s, answer=settings.answer))
        try:
            for start in range(0, len(rows), AT_A_TIME):
                counts += _judge(rows[start : start + AT_A_TIME], pool, output)
        except BrokenPipeError:  # whoever reads has seen enough; Python flushes what is left when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            where = f"--output {options.output}" if options.output else "standard output"
            raise InputError(f"{where}: {explained(error, (options.output or path).parent)}") from None
    _say(counts)
    return 0


def verdict_text(outcome: Outcome) -> str:
    """Return an outcome in words: "no answer" for NO_ANSWER."""
    return outcome.value.replace("_", " ")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("judge", __doc__ or "")
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="rows with a completion and the right answer")
    parser.add_argument(
        "--answer",
        default="boxed",
        metavar="FORM",
        help="boxed, after:MARK, last_number or tag:NAME, as reward.answer (%(default)s; docs/rewards.md)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="verifier processes; one for each core by default")
    parser.add_argument(
        "--timeout-s", type=float, default=5.0, metavar="S", help="deadline of one answer, seconds (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.jsonl", help="write the rows there, not to standard output"
    )
    return parser.parse_args(arguments)


def _settings(options: argparse.Namespace) -> RewardConfig:
    """Check what is a setting of [reward] as that section does. Raises InputError."""
    given = {"answer": options.answer, "timeout_s": options.timeout_s, "workers": options.workers or "auto"}
    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers {options.workers}: nothing could be judged; pass 1 or more.")
    try:
        return RewardConfig.model_validate({**given, "budget_s": max(options.timeout_s, 1.0)})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise InputError(str(first["ctx"]["error"])) from None
        name, reason = str(first["loc"][0]).replace("_", "-"), first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"--{name} {first['input']}: {reason}; change the value.") from None


def _rows(path: Path) -> Iterator[_Row]:
    for place, row in read_rows(path, (".jsonl", ".ndjson")):
        if missing := [name for name in ("completion", "answer") if name not in row]:
            there = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{place}: no {missing[0]!r} (fields: {there}); write a completion and its answer.")
        completion, answer = row["completion"], answer_text(row["answer"], "answer", place)
        if not isinstance(completion, str):
            raise DataError(f"{place}: 'completion' is {kind_of(completion)}, not text; write a string there.")
        if len(answer) > MAX_READ_CHARS:
            raise DataError(
                f"{place}: 'answer' has {len(answer):,} characters, and at most {MAX_READ_CHARS:,} are read; write the "
                "answer alone."
            )
        yield _Row(row, completion, answer)


def _judge(rows: list[_Row], pool: VerifierPool, output: TextIO) -> Counter[str]:
    verdicts = [verdict_text(each.outcome) for each in pool.judge_all([(row.completion, row.answer) for row in rows])]
    for row, verdict in zip(rows, verdicts, strict=True):
        output.write(json.dumps({**row.content, "verdict": verdict}) + "\n")
    output.flush()
    return Counter(verdicts)


def _open(path: Path | None, stack: ExitStack) -> TextIO:
    if path is None:
        return sys.stdout
    try:
        return stack.enter_context(open(path, "w", encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--output {path}: {explained(error, path.parent)}") from None


def _say(counts: Counter[str]) -> None:
    """Print the number of rows and of each verdict, every verdict named."""
    shares = ", ".join(f"{verdict_text(outcome)} {counts[verdict_text(outcome)]}" for outcome in Outcome)
    print(f"{counts.total()} rows: {shares}", file=sys.stderr)
