"""Load a tokenizer from the model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_rapo.data.rows import DataError
from megatron_rapo.runtime import gc_control

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that may hold the vocabulary; one is enough."""
SENTENCEPIECE = "tokenizer.model"


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer in the folder `path`, without network access. Raises DataError if it cannot be loaded."""
    with gc_control.imports():
        from transformers import AutoTokenizer  # takes seconds

    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name a local Hugging Face model folder.")
    # Without such a file, transformers 5 may create a tokenizer with special tokens only, from config.json.
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise DataError(f"{folder}: none of {', '.join(VOCABULARY_FILES)} is there; copy the model's tokenizer files.")
    try:
        if (folder / SENTENCEPIECE).is_file() and not (folder / "tokenizer.json").is_file():
            from megatron_rapo.data.sentencepiece import load_sentencepiece

            tokenizer: PreTrainedTokenizerBase = load_sentencepiece(folder / SENTENCEPIECE)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any kind: the files are parsed by several libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f"{folder}: its tokenizer cannot be loaded ({reason}); copy the model's tokenizer "
            "files again (tokenizer.json, tokenizer_config.json)."
        ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{folder}: the tokenizer has no end-of-sequence token, so completions could not end; "
            'set "eos_token" in tokenizer_config.json.'
        )
    return tokenizer
