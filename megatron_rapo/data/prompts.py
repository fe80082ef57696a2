"""Build tokenised prompts from problems, and leave out those that are too long."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from megatron_rapo.data.prompt_table import (
    ROWS,
    ContentDigest,
    Piece,
    PromptTable,
    StoredProblems,
    StoredPrompts,
    write_table,
)
from megatron_rapo.data.rows import DataError
from megatron_rapo.data.templates import Template, render
from megatron_rapo.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_A_TIME = 512  # texts that a thread tokenises at a time
MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts within the length limit, and the problems of those above it."""

    prompts: Sequence[Prompt]
    too_long: Sequence[Problem]  # left out; no prompt is ever cut

    @property
    def problems(self) -> Sequence[Problem]:
        """Return the problems of the prompts, in their order."""
        if isinstance(self.prompts, StoredPrompts):
            return StoredProblems(self.prompts.table, self.prompts.rows)
        return [prompt.problem for prompt in self.prompts]

    def digest(self) -> str:
        """Return the ContentDigest of the prompts in order: problem, answer and token ids."""
        if isinstance(self.prompts, StoredPrompts):
            return self.prompts.table.digest
        digest = ContentDigest()
        for prompt in self.prompts:
            digest.update(prompt.problem, prompt.token_ids)
        return digest.hexdigest()

    def unlink(self) -> None:
        """Remove the name of a shared file. Call this when all processes of the machine have their prompts."""
        if isinstance(self.prompts, StoredPrompts) and self.prompts.table.file:
            self.prompts.table.file.unlink()


def build_prompts(
    problems: Iterable[Problem], tokenizer: PreTrainedTokenizerBase, template: Template, max_prompt_tokens: int
) -> PromptSet:
    """Render and tokenise `problems` in order.

    Special tokens in the rendered text are recognised, and nothing is added at the end. The beginning-of-sequence token
    is added in front if the tokenizer itself adds one (Llama does, so the model has never seen a text without it; Qwen
    does not) and the text does not start with it. It is never added with the template `chat`, because a chat template
    writes its own. Raises DataError if no prompt is within `max_prompt_tokens`.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    write_table(sink, tokenised_pieces(problems, tokenizer, template), max_prompt_tokens)
    return prompt_set(PromptTable(sink.getvalue()), max_prompt_tokens)


def prompt_set(table: PromptTable, max_prompt_tokens: int) -> PromptSet:
    """Split the prompts of a table by the length limit. Raises DataError as `build_prompts` does."""
    lengths = table.num_tokens
    if not len(lengths):
        raise DataError("no problems to build prompts from; name a data set with at least one.")
    fits = lengths <= max_prompt_tokens
    if not fits.any():
        shortest = lengths.min()
        raise DataError(
            f"data.max_prompt_tokens={max_prompt_tokens}: all {len(lengths)} prompts are longer, and the shortest "
            f"has {shortest} tokens; set data.max_prompt_tokens >= {shortest}."
        )
    return PromptSet(
        prompts=StoredPrompts(table, np.flatnonzero(fits)), too_long=StoredProblems(table, np.flatnonzero(~fits))
    )


def tokenised_pieces(
    problems: Iterable[Problem], tokenizer: PreTrainedTokenizerBase, template: Template
) -> Iterator[Piece]:
    """Render and tokenise ROWS problems at a time. Threads work on one piece while the next one is read."""
    start = _start_tokens(tokenizer)  # this call also turns truncation and padding off, which threads cannot do
    if template.chat:
        start = []

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [ids if ids[: len(start)] == start else [*start, *ids] for ids in encoded]

    waiting: deque[tuple[Sequence[Problem], Sequence[str], list[Future[list[list[int]]]]]] = deque()

    def finished() -> Piece:
        batch, texts, parts = waiting.popleft()
        return Piece(batch, texts, [ids for part in parts for ids in part.result()])

    remaining = iter(problems)
    with ThreadPoolExecutor(_threads(tokenizer)) as pool:
        while batch := list(islice(remaining, ROWS)):
            texts = render(template, [problem.text for problem in batch], tokenizer)
            parts = [texts[i : i + TEXTS_AT_A_TIME] for i in range(0, len(texts), TEXTS_AT_A_TIME)]
            waiting.append((batch, texts, [pool.submit(encode, part) for part in parts]))
            if len(waiting) > 1:
                yield finished()
        while waiting:
            yield finished()


def _threads(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of threads for tokenisation. Only a tokenizer in Rust lets several threads run at once."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0))) if tokenizer.is_fast else 1


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence token if the tokenizer puts it before every text, else an empty list."""
    bos, ids = tokenizer.bos_token_id, tokenizer("")["input_ids"]
    return [bos] if bos is not None and ids[:1] == [bos] else []
