from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models

from megatron_rapo.data import load_tokenizer
from megatron_rapo.monitor import text_pieces

TINY = Path(__file__).parents[2] / "examples/tiny/model"


def of_bytes() -> Tokenizer:
    """Return one token per byte, as byte-level tokenizers fall back to."""
    tokenizer = Tokenizer(models.WordLevel({f"<0x{byte:02X}>": byte for byte in range(256)}, unk_token="<0x00>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def pieces(text: bytes) -> list[str]:
    return text_pieces(list(text), lambda ids: of_bytes().decode(list(ids)))


def test_a_piece_is_the_text_of_its_token() -> None:
    assert pieces(b"1+1=2") == ["1", "+", "1", "=", "2"]
    assert pieces(b"") == []


def test_a_character_of_several_tokens_is_with_the_last() -> None:
    assert pieces("aé€🙂z".encode()) == ["a", "", "é", "", "", "€", "", "", "", "🙂", "z"]


def test_what_is_no_character_is_shown_all_the_same() -> None:
    """A piece has a limited number of tokens, so a model that writes nothing else does not take forever."""
    lost = "\N{REPLACEMENT CHARACTER}"
    assert pieces(b"\xff" * 10) == ["", "", "", "", "", "", "", lost * 8, "", lost * 2]
    assert pieces(b"a\xc3") == ["a", lost]


def test_the_pieces_of_a_real_tokenizer_are_its_text() -> None:
    tokenizer = load_tokenizer(TINY)

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=False))

    ids = [*tokenizer("12 + 345 = \\boxed{357}")["input_ids"], tokenizer.eos_token_id]
    found = text_pieces(ids, decode)
    assert len(found) == len(ids) and "".join(found) == decode(ids) and found[-1] == tokenizer.eos_token
