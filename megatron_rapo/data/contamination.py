"""Find problems that two data sets share.

The overlap of two problems is their number of common 13-grams (runs of 13 words, see text_normalization.py), divided by
the number of 13-grams of the problem that has fewer. A problem of fewer than 13 words is a single n-gram. One common
13-gram proves nothing: "can be expressed as m/n, where m and n are relatively prime positive integers" is longer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from megatron_rapo.data.text_normalization import words

NGRAM = 13


class Overlap(NamedTuple):
    """Two problems with an n-gram in common, by their index."""

    here: int
    there: int
    share: float  # common n-grams over those of the problem with fewer, 0 to 1


def overlaps(here: Sequence[str], there: Sequence[str]) -> list[Overlap]:
    """Return all pairs of a text in `here` and one in `there` that share an n-gram, largest share first."""
    grams_there = [ngrams(text) for text in there]
    having: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, grams in enumerate(grams_there):
        for gram in grams:
            having[gram].append(index)
    found = []
    for index, text in enumerate(here):
        grams = ngrams(text)
        common = Counter(other for gram in grams for other in having.get(gram, ()))
        found += [Overlap(index, other, n / min(len(grams), len(grams_there[other]))) for other, n in common.items()]
    return sorted(found, key=lambda pair: (-pair.share, pair.here, pair.there))


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Return the 13-grams of `text`: a shorter text is one n-gram, a text without words has none."""
    all_words = words(text)
    if len(all_words) < NGRAM:
        return {tuple(all_words)} - {()}
    return {tuple(all_words[start : start + NGRAM]) for start in range(len(all_words) - NGRAM + 1)}
