"""Prompts -> judged completions, shared out over the engines. The same result on every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from megatron_rapo.config import RewardConfig
from megatron_rapo.rewards import VerifierPool, reward_of
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.types import Completion, Group, Prompt, Verdict

Judged = tuple[tuple[Completion, ...], tuple[Verdict, ...]]


def sampling_seed(*path: int) -> int:
    """A 32-bit seed for one completion, from where it stands: (run seed, step, prompt, sample). No layout counts."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=4).digest(), "big")


@dataclass(frozen=True)
class Sampler:
    """The engines and the verifiers of all processes as one. Every method is collective over the world."""

    engine: Engine
    verifier: VerifierPool
    reward: RewardConfig

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
        """Verdicts and rewards of every engine's completions; all groups, in the order of `prompts`, everywhere.

        The processes of one engine share its verification between them.
        """
        mine = sorted(completions)[self.engine.rank_in_replica :: self.engine.replica_size]
        verdicts = iter(
            self.verifier.judge_all([(c.text, prompts[i].problem.answer) for i in mine for c in completions[i]])
        )
        judged = {i: (completions[i], tuple(next(verdicts) for _ in completions[i])) for i in mine}
        everyone: list[dict[int, Judged]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, judged)
        by_index = {i: pair for part in everyone for i, pair in part.items()}
        return [self._group(prompt, *by_index[i]) for i, prompt in enumerate(prompts)]

    def _group(self, prompt: Prompt, completions: tuple[Completion, ...], verdicts: tuple[Verdict, ...]) -> Group:
        rewards = tuple(reward_of(verdict, self.reward) for verdict in verdicts)
        return Group(prompt=prompt, completions=completions, verdicts=verdicts, rewards=rewards)
