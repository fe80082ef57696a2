"""Stand-ins for an engine and a verifier, of which a test says how long completions are and which are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron_rapo.rollout import Work
from megatron_rapo.types import Completion, Outcome, Verdict


class ScriptedEngine:
    """Answers the prompt (i, ...) with seed s by the text "i s", with `length(i, s)` more tokens than are begun.

    A step gives a token to each. Log-probabilities are the version of the weights.
    """

    def __init__(
        self,
        length: Callable[[int, int], int] = lambda *_: 1,
        *,
        replica: int = 0,
        num_replicas: int = 1,
        rank_in_replica: int = 0,
        replica_size: int = 1,
    ) -> None:
        self.replica, self.num_replicas = replica, num_replicas
        self.rank_in_replica, self.replica_size = rank_in_replica, replica_size
        self.length, self.weight_version, self.steps = length, 0, 0
        self.asked: list[tuple[int, int]] = []  # prompt and seed of every request

    @contextmanager
    def generating(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Any,
        seeds: Sequence[int],
        *,
        begun: Sequence[Completion],
        stoppable: bool,
    ) -> Iterator[ScriptedGeneration]:
        self.sampling, self.stoppable, self.steps = sampling, stoppable, 0
        asked = [(prompt[0], seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        self.asked += asked
        yield ScriptedGeneration(self, asked, begun)


class ScriptedGeneration:
    def __init__(self, engine: ScriptedEngine, asked: list[tuple[int, int]], begun: Sequence[Completion]) -> None:
        self.engine, self.asked, self.under_way = engine, asked, dict(enumerate(begun))
        self.work = Work(prompt_tokens=8, cached_tokens=6)

    def step(self) -> dict[int, Completion]:
        self.engine.steps += 1
        self.work += Work(steps=1)
        ended = [place for place in self.under_way if self.engine.length(*self.asked[place]) == self.engine.steps]
        return {place: self.completion(place, finished=True) for place in ended}

    def stop(self) -> dict[int, Completion]:
        return {place: self.completion(place, finished=False) for place in list(self.under_way)}

    def completion(self, place: int, *, finished: bool) -> Completion:
        begun, version, new = self.under_way.pop(place), self.engine.weight_version, self.engine.steps
        text = " ".join(map(str, self.asked[place])) if finished else ""
        return begun.extended([7] * new, [version] * new, version, text=text, truncated=False, finished=finished)


class ScriptedVerifier:
    """An answer is right where its seed is even, and has no box where it is 1; remembers what it judged."""

    def __init__(self) -> None:
        self.judged: list[tuple[str, str]] = []

    def judging(self) -> ScriptedVerifier:
        self.start = len(self.judged)
        return self

    def submit(self, text: str, answer: str) -> int:
        prompt, _ = text.split()
        assert prompt == answer
        self.judged.append((text, answer))
        return len(self.judged) - 1 - self.start

    def poll(self) -> None:
        pass

    def finish(self, chosen: Sequence[int]) -> list[Verdict]:
        seeds = [int(self.judged[self.start + number][0].split()[1]) for number in chosen]
        return [Verdict(outcome=Outcome.WRONG if seed % 2 else Outcome.CORRECT, formatted=seed != 1) for seed in seeds]
