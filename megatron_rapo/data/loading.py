"""From a data file and a model folder to prompts: read and tokenised once on a machine, whichever process asks."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from megatron_rapo.data.node_file import node_file
from megatron_rapo.data.problems import read_problems
from megatron_rapo.data.prompt_table import PromptTable
from megatron_rapo.data.prompts import PromptSet, build_prompts, prompt_set, write_prompts
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

    With `shared`, one of the processes on this machine that ask for the same makes them, and the others map what it
    wrote. Raises DataError as `read_problems`, `load_tokenizer` and `build_prompts` do, and InputError.
    """
    fields = {"problem_field": problem_field, "answer_field": answer_field}
    if not shared:
        return build_prompts(read_problems(path, **fields), load_tokenizer(model), template, max_prompt_tokens)

    def make(file: BinaryIO) -> None:
        write_prompts(file, read_problems(path, **fields), load_tokenizer(model), template, max_prompt_tokens)

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
    """Return what tells a file, as it is now, from others on this machine."""
    try:
        found = path.stat()
    except OSError:
        return (str(path),)
    return str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
