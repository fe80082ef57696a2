"""Find where completions end: which tokens are kept, and which text is judged."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from megatron_rapo.data.stops import Stops


class Ending(NamedTuple):
    """The end of a completion."""

    num_tokens: int  # includes the stop token, or the token that completes a stop string
    text: str  # before the stop token or string
    stopped: bool  # False: there is neither a stop token nor a stop string


class Endings:
    """Finds where completions end. `decode` turns token ids into text without special tokens."""

    def __init__(self, stops: Stops, decode: Callable[[Sequence[int]], str]) -> None:
        self._token_ids, self._strings, self._decode = frozenset(stops.token_ids), stops.strings, decode
        # Each token of a stop string has at least one of its bytes. The 8 extra tokens allow for special tokens between
        # them, and for what a tokenizer does at the start of a text.
        self._window = 8 + max((len(string.encode()) for string in stops.strings), default=0)
        self._last_characters = {string[-1] for string in stops.strings} | {"\N{REPLACEMENT CHARACTER}"}
        self._may_complete: dict[int, bool] = {}

    @property
    def has_strings(self) -> bool:
        return bool(self._strings)

    def find(self, token_ids: Sequence[int]) -> Ending:
        """Return where a completion ends: at the first stop token, or where a stop string is completed."""
        at = next((place for place, token_id in enumerate(token_ids) if token_id in self._token_ids), None)
        before = token_ids[:at]  # all tokens if there is no stop token
        text = self._decode(before)
        if self._stop_string(text) is None:
            return Ending(len(token_ids) if at is None else at + 1, text, at is not None)
        count = len(before)
        if self._has_string(before[:-1]):  # not if the engine stopped at once
            count = 1 + bisect_left(range(1, count), True, key=lambda n: self._has_string(before[:n]))
        text = self._decode(before[:count])
        return Ending(count, text[: min(text.index(string) for string in self._strings if string in text)], True)

    def completed(self, begun: Sequence[int], new: Sequence[int]) -> str | None:
        """Return the stop string that the last token completes, if any. The tokens are `begun` and then `new`.

        This is called for every token, so it decodes only where the last one could complete a string.
        """
        if not new or not self._could_complete(new[-1]):
            return None
        last = [*begun[-self._window :], *new[-self._window :]][-self._window :]
        return self._stop_string(self._decode([*begun, *new])) if self._has_string(last) else None

    def _could_complete(self, token_id: int) -> bool:
        """Return whether the token has the last character of a stop string, or a part of a character."""
        if token_id not in self._may_complete:
            text = self._decode([token_id, token_id])  # twice: some tokenizers drop a blank at the beginning of a text
            self._may_complete[token_id] = any(character in text for character in self._last_characters)
        return self._may_complete[token_id]

    def _has_string(self, token_ids: Sequence[int]) -> bool:
        return self._stop_string(self._decode(token_ids)) is not None

    def _stop_string(self, text: str) -> str | None:
        return next((string for string in self._strings if string in text), None)
