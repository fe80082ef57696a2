"""For a folder with a bare SentencePiece model, the tokenizer gives the same results as `sentencepiece`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from megatron_rapo.data import load_tokenizer
from megatron_rapo.data.rows import DataError

CORPUS = [
    *("the quick brown fox jumps over the lazy dog", "12 + 34 = 46", "x = \\boxed{5}", "  leading  and   many "),
    *("ünïcödé", "if (a < b) { return c; }", "a line\nand another"),
]
TEXTS = {
    "words": "the quick fox",
    "spaces": "  two  spaces, and a trailing one ",
    "only a space": " ",
    "nothing": "",
    "new lines and tabs": "12+34\n\nnew\tline\n",
    "unicode": "ünïcödé",
    "byte fallback": "漢字 😀 é",
    "mathematics": "So x = \\boxed{5} and 12 + 34.",
    "control symbols": "a</s>b <s> <unk>",
    "bytes by name": "<0x41>",
}


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model like that of Llama 2: byte fallback, split digits, a space in front, no normalisation."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 50),
        model_writer=model,
        model_type=request.param,
        vocab_size=340,
        byte_fallback=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module")
def itself(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("name", TEXTS)
def test_ids_and_text_are_sentencepieces(folder: Path, itself: SentencePieceProcessor, name: str) -> None:
    tokenizer, ids = load_tokenizer(folder), itself.encode(TEXTS[name])
    assert tokenizer.encode(TEXTS[name], add_special_tokens=False) == ids
    assert tokenizer([TEXTS[name]], add_special_tokens=False)["input_ids"] == [ids]
    assert tokenizer.decode(ids) == itself.decode(ids)
    assert tokenizer.decode([*ids, itself.eos_id()], skip_special_tokens=True) == itself.decode(ids)


def test_special_tokens_and_size(folder: Path, itself: SentencePieceProcessor) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == itself.eos_id() == 2
    assert tokenizer.bos_token_id == itself.bos_id() == 1
    assert len(tokenizer) == itself.get_piece_size()


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("not a model")
    with pytest.raises(DataError) as raised:
        load_tokenizer(tmp_path)
    assert f"{tmp_path}: its tokenizer cannot be loaded (" in str(raised.value)
