"""Prompts -> judged completions, shared out over the engines. The same result on every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from megatron_rapo.rewards import Rewards, VerifierPool, reward_of
from megatron_rapo.rewards.reward import by_name
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.types import Completion, Group, Prompt, Verdict

T = TypeVar("T")


def sampling_seed(*path: int) -> int:
    """A 32-bit seed for one completion, from where it stands: (run seed, step, prompt, sample). No layout counts."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=4).digest(), "big")


@dataclass(frozen=True)
class Sampler:
    """The engines and the verifiers of all processes as one. Every method is collective over the world."""

    engine: Engine
    verifier: VerifierPool
    rewards: Rewards

    def complete(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: Callable[[int, int], int]
    ) -> dict[int, tuple[Completion, ...]]:
        """`n` completions of each of this engine's share of `prompts`, by the prompt's index.

        `seed(i, j)` seeds completion j of prompt i. All processes of an engine hold the same result.
        """
        engine = self.engine
        mine = range(engine.replica, len(prompts), engine.num_replicas)
        completions = engine.generate(
            [prompts[i].token_ids for i in mine for _ in range(n)],
            sampling,
            seeds=[seed(i, j) for i in mine for j in range(n)],
        )
        return {i: tuple(completions[k * n : (k + 1) * n]) for k, i in enumerate(mine)}

    def judge(self, prompts: Sequence[Prompt], completions: dict[int, tuple[Completion, ...]]) -> list[Group]:
        """Every engine's completions, with verdicts and rewards; all groups, in the order of `prompts`, everywhere.

        The processes of one engine share its completions between them; each completion's reward is computed once.
        Raises as a RewardFunction does.
        """
        mine = self._verify(prompts, completions)
        terms = {
            i: [self.rewards.terms(prompts[i].problem, c, v) for c, v in zip(completions[i], verdicts, strict=True)]
            for i, verdicts in mine.items()
        }
        judged = _gather({i: (completions[i], mine[i], terms[i]) for i in mine})
        return [
            Group(
                prompt=prompt,
                completions=judged[i][0],
                verdicts=judged[i][1],
                rewards=tuple(map(reward_of, judged[i][2])),
                terms=by_name(judged[i][2]),
            )
            for i, prompt in enumerate(prompts)
        ]

    def verify(self, prompts: Sequence[Prompt], completions: dict[int, tuple[Completion, ...]]) -> list[Group]:
        """As `judge`, without rewards."""
        judged = _gather({i: (completions[i], verdicts) for i, verdicts in self._verify(prompts, completions).items()})
        return [
            Group(prompt=prompt, completions=judged[i][0], verdicts=judged[i][1]) for i, prompt in enumerate(prompts)
        ]

    def _verify(
        self, prompts: Sequence[Prompt], completions: dict[int, tuple[Completion, ...]]
    ) -> dict[int, tuple[Verdict, ...]]:
        """Verdicts on this process's share of its engine's `completions`, by the prompt's index."""
        mine = sorted(completions)[self.engine.rank_in_replica :: self.engine.replica_size]
        verdicts = iter(
            self.verifier.judge_all([(c.text, prompts[i].problem.answer) for i in mine for c in completions[i]])
        )
        return {i: tuple(next(verdicts) for _ in completions[i]) for i in mine}


def _gather(mine: dict[int, T]) -> dict[int, T]:
    """The entries of all processes."""
    everyone: list[dict[int, T]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    return {i: entry for part in everyone for i, entry in part.items()}
