"""Select as many recorded completions as fit on a page, evenly over the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from megatron_rapo.errors import InputError
from megatron_rapo.monitor import read_lines, read_rollouts

MOST_STEPS = 60
HEAD_TOKENS, TAIL_TOKENS = 3000, 500
"""Numbers of first and last tokens that are shown of a longer completion."""
_PER_TOKEN = ("tokens", "engine_logp", "trainer_logp", "reference_logp")
_DECIMALS = 5

T = TypeVar("T")


def read_completions(folder: Path, *, most_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """Return completions of a run (at most `most_bytes` of JSON), and how many were recorded at the steps read."""
    completions = []
    for _, path in spread(list(read_rollouts(folder)), MOST_STEPS):
        try:
            completions += [_shortened(line) for line in read_lines(path)]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); remove it.") from None
    sizes = [len(json.dumps(each)) for each in completions]
    return [completions[i] for i in _that_fit(sizes, most_bytes)], len(completions)


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` evenly spaced items, among them the first and the last."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[-most:]) if most else []
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _that_fit(sizes: Sequence[int], most_bytes: int) -> list[int]:
    """Return indices of evenly spaced items of at most `most_bytes` together, as many as a binary search finds."""
    fewest, most = 0, len(sizes)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if sum(sizes[i] for i in spread(range(len(sizes)), middle)) <= most_bytes:
            fewest = middle
        else:
            most = middle - 1
    return spread(range(len(sizes)), fewest)


def _shortened(completion: dict[str, Any]) -> dict[str, Any]:
    """Round the numbers and drop the middle of a long completion: `cut` tokens from `cut_at` on."""
    cut = max(0, len(completion["tokens"]) - HEAD_TOKENS - TAIL_TOKENS)
    for name in _PER_TOKEN:
        column = completion[name]
        if column is None:
            continue
        if cut:
            column = column[:HEAD_TOKENS] + column[-TAIL_TOKENS:]
        completion[name] = [round(x, _DECIMALS) if isinstance(x, float) else x for x in column]
    return completion | {"cut": cut, "cut_at": HEAD_TOKENS}
