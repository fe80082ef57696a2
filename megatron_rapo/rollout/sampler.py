"""Turn prompts into judged completions, shared among the engines. The result is the same on every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from megatron_rapo.rewards import Rewards, reward_of
from megatron_rapo.rewards.terms import by_name
from megatron_rapo.rollout import Engine, Sampling, Work
from megatron_rapo.types import NOTHING, Completion, Group, OpenGroup, Prompt, Verdict
from megatron_rapo.verifier import Judging, VerifierPool

Seed = Callable[[int, int], int]  # (group index, completion index) -> seed
T = TypeVar("T")


def sampling_seed(*path: int) -> int:
    """Return a completion's 32-bit seed for its path (run seed, step, prompt, sample). Independent of the layout."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=4).digest(), "big")


class Sampled:
    """One engine's share of the groups, while it samples and afterwards. Every process of the engine has the same.

    Each finished completion goes to the verifier at once, on the process of the engine that judges its group.
    """

    def __init__(
        self, groups: Sequence[OpenGroup], mine: Sequence[int], judged_here: Sequence[int], judging: Judging
    ) -> None:
        self.prompts = [group.prompt for group in groups]  # of all groups, also those of other engines
        self.completions = {index: groups[index].completions for index in mine}  # finished or not
        self.whole: set[int] = set()  # indices of the groups that are complete and taken
        self.work = Work()
        self._judging, self._numbers = judging, {index: [-1] * len(groups[index].completions) for index in judged_here}
        for index in mine:
            for place, completion in enumerate(groups[index].completions):
                self.take(index, place, completion)

    def take(self, index: int, place: int, completion: Completion) -> None:
        """Record the current state of one completion of the group `index`."""
        present = self.completions[index]
        self.completions[index] = present = (*present[:place], completion, *present[place + 1 :])
        if completion.finished and index in self._numbers:
            answer = self.prompts[index].problem.answer
            self._numbers[index][place] = self._judging.submit(completion.text, answer)
        if all(each.finished for each in present):
            self.whole.add(index)

    def choose(self, count: int) -> None:
        """Take only the first `count` complete groups. The others stay open."""
        self.whole = set(sorted(self.whole)[:count])

    def verdicts(self) -> dict[int, tuple[Verdict, ...]]:
        """Return verdicts of the complete groups that are judged here. Waits for missing ones."""
        mine = sorted(self.whole & self._numbers.keys())
        found = iter(self._judging.finish([number for index in mine for number in self._numbers[index]]))
        return {index: tuple(next(found) for _ in self._numbers[index]) for index in mine}


@dataclass(frozen=True)
class Sampler:
    """The engines and verifiers of all processes together. Every method is collective over the world."""

    engine: Engine
    verifier: VerifierPool
    rewards: Rewards

    def complete(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: Seed) -> Sampled:
        """Sample `n` completions for each of this engine's `prompts`. `seed(i, j)` seeds completion j of prompt i."""
        return self.go_on([OpenGroup(prompt=prompt, completions=(NOTHING,) * n) for prompt in prompts], sampling, seed)

    def go_on(
        self,
        groups: Sequence[OpenGroup],
        sampling: Sampling,
        seed: Seed,
        *,
        wanted: int | None = None,
        awaited: int = 0,
    ) -> Sampled:
        """Sample what this engine's share of `groups` still lacks, until enough groups are complete (None: all).

        `wanted` is divided equally among the engines. An engine stops once its share is complete and includes those of
        the first `awaited` groups that it has. It takes complete groups in order, and keeps partial rollouts of others.
        """
        engine = self.engine
        mine = range(engine.replica, len(groups), engine.num_replicas)
        share = len(mine) if wanted is None else wanted // engine.num_replicas
        awaited_here = {index for index in mine if index < awaited}
        judging = self.verifier.judging()
        sampled = Sampled(groups, mine, mine[engine.rank_in_replica :: engine.replica_size], judging)
        asked = [(i, j) for i in mine for j, completion in enumerate(groups[i].completions) if not completion.finished]
        with engine.generating(
            [groups[i].prompt.token_ids for i, _ in asked],
            sampling,
            [seed(i, j) for i, j in asked],
            begun=[groups[i].completions[j] for i, j in asked],
            stoppable=wanted is not None,
        ) as generation:
            while len(sampled.whole) < share or awaited_here - sampled.whole:
                for place, completion in generation.step().items():
                    sampled.take(*asked[place], completion)
                judging.poll()
            for place, completion in generation.stop().items():
                sampled.take(*asked[place], completion)
        sampled.choose(share)
        sampled.work = generation.work
        return sampled

    def judge(self, sampled: Sampled) -> list[Group]:
        """Return the complete groups of every engine, in order, with verdicts and rewards, on every process.

        The processes of one engine share its groups; each completion's reward is computed once.
        Raises whatever a RewardFunction raises.
        """
        verdicts, completions = sampled.verdicts(), sampled.completions
        terms = {
            i: [
                self.rewards.terms(sampled.prompts[i].problem, c, v)
                for c, v in zip(completions[i], of_group, strict=True)
            ]
            for i, of_group in verdicts.items()
        }
        judged = _gather({i: (completions[i], verdicts[i], terms[i]) for i in verdicts})
        return [
            Group(
                prompt=sampled.prompts[i],
                completions=of_group,
                verdicts=judged_so,
                rewards=tuple(map(reward_of, earned)),
                terms=by_name(earned),
                weight_version=self.engine.weight_version,
            )
            for i, (of_group, judged_so, earned) in judged.items()
        ]

    def verify(self, sampled: Sampled) -> list[Group]:
        """Return the same groups as `judge`, without rewards."""
        judged = _gather({i: (sampled.completions[i], of_group) for i, of_group in sampled.verdicts().items()})
        return [
            Group(prompt=sampled.prompts[i], completions=of_group, verdicts=judged_so)
            for i, (of_group, judged_so) in judged.items()
        ]

    def rest(self, sampled: Sampled) -> dict[int, tuple[Completion, ...]]:
        """Return the completions of all groups that were not taken, of every engine, by index, on every process."""
        of_engine = {i: present for i, present in sampled.completions.items() if i not in sampled.whole}
        return _gather(of_engine if self.engine.rank_in_replica == 0 else {})


def _gather(mine: dict[int, T]) -> dict[int, T]:
    """Return the entries of all processes, ordered by key."""
    everyone: list[dict[int, T]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    entries = {i: entry for part in everyone for i, entry in part.items()}
    return {i: entries[i] for i in sorted(entries)}
