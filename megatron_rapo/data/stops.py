"""Find where completions stop: at token ids and at strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_rapo.data.rows import DataError
from megatron_rapo.runtime.safe_json import JSONError, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOS_FILES = ("config.json", "generation_config.json")
"""Files of a model folder that may name its end-of-sequence tokens."""


@dataclass(frozen=True, kw_only=True)
class Stops:
    """A completion ends with the first of these tokens, or with the token that completes one of these strings."""

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    shown: str = "nothing"  # for messages


def find_stops(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    strings: Sequence[str] = (),
    token_ids: Sequence[int] = (),
) -> Stops:
    """Return where completions of the model in `folder` stop: its end-of-sequence tokens, `strings` and `token_ids`.

    The end-of-sequence tokens come from the tokenizer, config.json and generation_config.json. A string that is a
    special token also stops by its id, because decoding omits special tokens. Raises DataError for an id outside the
    `vocab_size` tokens.
    """
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise DataError(
                f"rollout.stop_token_ids={list(token_ids)}: {token_id} is no token of {folder}, which has "
                f"{vocab_size:,} (ids 0 to {vocab_size - 1}); remove it."
            )
    ids = {*_eos_token_ids(folder, vocab_size), *token_ids}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    ids |= {special for special in (_special_token(string, tokenizer) for string in strings) if special is not None}
    shown_ids = [f"{str(tokenizer.decode([token_id]))!r} ({token_id})" for token_id in sorted(ids)]
    return Stops(
        token_ids=tuple(sorted(ids)),
        strings=tuple(strings),
        shown=f"token {', '.join(shown_ids)}" + (f"; text {', '.join(map(repr, strings))}" if strings else ""),
    )


def _special_token(string: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of `string` if it is a token that decoding omits, else None."""
    token_id = tokenizer.convert_tokens_to_ids(string)
    if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != string:  # an unknown token gives another id
        return None
    return int(token_id) if tokenizer.decode([token_id], skip_special_tokens=True) == "" else None


def _eos_token_ids(folder: Path, vocab_size: int) -> set[int]:
    """Return the end-of-sequence ids in EOS_FILES of the model folder."""
    ids: set[int] = set()
    for path in (folder / name for name in EOS_FILES):
        if path.exists():
            eos = _read(path).get("eos_token_id")
            for token_id in eos if isinstance(eos, list) else [] if eos is None else [eos]:
                if type(token_id) is not int or not 0 <= token_id < vocab_size:
                    raise DataError(
                        f"{path}: eos_token_id={eos!r:.80}: not a token id (0 to {vocab_size - 1}) or a list of them; "
                        "copy the model's own file again."
                    )
                ids.add(token_id)
    return ids


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (JSONError, OSError) as error:
        raise DataError(f"{path}: {error}; copy the model's own file again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; copy the model's own file again.")
    return content
