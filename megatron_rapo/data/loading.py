"""Load prompts from a data file and a model folder. The processes of a machine can share one tokenised copy."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from megatron_rapo.data.node_shared_file import node_file
from megatron_rapo.data.problems import read_problems
from megatron_rapo.data.prompt_table import PromptTable, write_table
from megatron_rapo.data.prompts import PromptSet, build_prompts, prompt_set, tokenised_pieces
from megatron_rapo.data.templates import Template
from megatron_rapo.data.tokenizer import load_tokenizer

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def load_prompts(
    path: Path,
    model: Path,
    template: Template,
    max_prompt_tokens: int,
    *,
    problem_field: str = "problem",
    answer_field: str = "answer",
    shared: bool = False,
) -> PromptSet:
    """Return the prompts of the problems in `path`, for the tokenizer of `model`.

    With `shared`, one process on this machine builds them, and others that need the same prompts map its file into
    memory. Raises InputError, and DataError as `read_problems`, `load_tokenizer` and `build_prompts` do.
    """
    fields = {"problem_field": problem_field, "answer_field": answer_field}
    if not shared:
        return build_prompts(read_problems(path, **fields), load_tokenizer(model), template, max_prompt_tokens)

    def make(file: BinaryIO) -> None:
        pieces = tokenised_pieces(read_problems(path, **fields), load_tokenizer(model), template)
        write_table(file, pieces, max_prompt_tokens)

    import pyarrow as pa  # type: ignore[import-untyped]

    tokenizer_files = sorted(p for p in model.glob("*") if p.suffix not in _WEIGHTS)
    depends_on = (
        [_identity(file) for file in (path, *tokenizer_files)],
        (template, max_prompt_tokens, problem_field, answer_field),
        [version(package) for package in ("megatron-rapo", "transformers", "tokenizers", "pyarrow")],
    )
    found = node_file(f"prompts-{xxhash.xxh3_128_hexdigest(repr(depends_on).encode())}", make)
    return prompt_set(PromptTable(pa.py_buffer(found.memory), found), max_prompt_tokens)


def _identity(path: Path) -> tuple[Any, ...]:
    """Return values that identify a file and its current content on this machine."""
    try:
        found = path.stat()
    except OSError:
        return (str(path),)
    return str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
