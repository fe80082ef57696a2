"""Load a bare SentencePiece model (as in Llama 2: a folder with tokenizer.model and no tokenizer.json).

transformers 5 converts such a file to a tokenizer of its own. That one omits the space that the model puts before a
text, and splits differently, so its token ids differ from those in the model's training. This tokenizer calls
`sentencepiece` itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class SentencePieceTokenizer(SentencePieceBackend):
    """A tokenizer that encodes and decodes exactly as `sentencepiece` does. Control symbols in a text are only text."""

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        model = SentencePieceProcessor(model_file=vocab_file)
        ids = {"unk_token": model.unk_id(), "bos_token": model.bos_id(), "eos_token": model.eos_id()}
        symbols = {name: model.id_to_piece(number) for name, number in ids.items() if number >= 0}
        super().__init__(vocab_file=vocab_file, split_special_tokens=True, **{**symbols, **kwargs})

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if skip_special_tokens:
            ids = [number for number in ids if number not in self.all_special_ids]
        text: str = self.sp_model.decode(ids)
        return text


def load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    """Load the tokenizer of a `.model` file. Raises OSError or RuntimeError if the file is not valid."""
    return SentencePieceTokenizer(str(path))
