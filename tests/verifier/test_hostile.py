"""A small sample of the completions of `python -m tests.verifier.fuzz`."""

from pathlib import Path

from tests.verifier import fuzz
from tests.verifier.hostile import KINDS, Hostile, hostile


def test_the_same_seed_gives_the_same_completions():
    found, again, other = (list(hostile(seed, 2 * len(KINDS), Path("c"))) for seed in (3, 3, 4))
    assert found == again != other
    assert [each.kind for each in found] == [*KINDS, *KINDS]
    assert any("touch c" in each.completion or "open('c'" in each.completion for each in found)


def test_nothing_hostile_gets_through():
    result = fuzz.fuzz(2 * len(KINDS), seed=1, workers=2, timeout_s=0.5)
    assert result["failures"] == []
    assert sum(result["outcomes"].values()) == 2 * len(KINDS)
    assert {"timeout", "wrong", "unparsable"} <= set(result["outcomes"])


def test_what_gets_through_is_a_failure(monkeypatch):
    def successful(seed, count, canary):
        canary.touch()
        yield Hostile("injection", r"\boxed{x=3}", "3")

    monkeypatch.setattr(fuzz, "hostile", successful)
    assert fuzz.fuzz(1, seed=0, workers=1, timeout_s=30.0)["failures"] == [
        "correct: '\\\\boxed{x=3}' for '3'",
        "code was run",
    ]
