from megatron_rapo.types import Outcome
from megatron_rapo.verifier.cache import MAX_CHARS, OutcomeCache


def test_the_one_that_was_asked_for_longest_ago_goes():
    cache = OutcomeCache(max_entries=2)
    cache.put(("1", "a"), Outcome.CORRECT)
    cache.put(("2", "a"), Outcome.WRONG)
    assert cache.get(("1", "a")) is Outcome.CORRECT
    cache.put(("3", "a"), Outcome.UNPARSABLE)
    assert len(cache) == 2
    assert [cache.get((content, "a")) for content in "123"] == [Outcome.CORRECT, None, Outcome.UNPARSABLE]


def test_what_is_not_kept():
    cache = OutcomeCache()
    cache.put(("1", "a"), Outcome.TIMEOUT)
    cache.put(("1" * MAX_CHARS, "a"), Outcome.WRONG)
    assert len(cache) == 0
    cache.put(("1" * (MAX_CHARS - 1), "a"), Outcome.WRONG)
    assert len(cache) == 1
