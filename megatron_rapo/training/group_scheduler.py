"""Schedule the groups of each step: new prompts, partial rollouts of earlier steps, rounds of dynamic sampling.

Every step begins batch.oversampled_prompts more groups than it trains on, and ends the rollout when it has enough
(docs/rollout.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_rapo.config import AlgorithmConfig, Config
from megatron_rapo.data import EpochOrder
from megatron_rapo.monitor import Monitor
from megatron_rapo.rollout import Sampling, Work
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.scoring.objective import groups_with_signal
from megatron_rapo.types import NOTHING, Completion, Group, OpenGroup, Prompt, Span


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A group that was begun and is not trained on yet."""

    prompt: int  # index of the training prompt
    step: int  # in which it was begun
    completions: tuple[Completion, ...]

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of all its completions so far."""
        return sum(len(completion.token_ids) for completion in self.completions)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as numbers and texts: torch loads only plain values (no empty bytes)."""
        return dict(vars(self), completions=[_completion_state(c) for c in self.completions])

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Begun:
        """Build the group from its `state_dict`."""
        return cls(**dict(state, completions=tuple(_completion_from(c) for c in state["completions"])))


def _completion_state(completion: Completion) -> dict[str, Any]:
    token_ids, logprobs = completion.token_ids.tobytes().hex(), completion.logprobs.tobytes().hex()
    return dict(vars(completion), token_ids=token_ids, logprobs=logprobs, spans=[list(s) for s in completion.spans])


def _completion_from(state: Mapping[str, Any]) -> Completion:
    token_ids = np.frombuffer(bytes.fromhex(state["token_ids"]), np.int32)
    logprobs = np.frombuffer(bytes.fromhex(state["logprobs"]), np.float32)
    spans = tuple(Span(*span) for span in state["spans"])
    return Completion(**dict(state, token_ids=token_ids, logprobs=logprobs, spans=spans))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The groups that one step sampled."""

    sampled: list[Group]  # all complete groups
    groups: list[Group]  # those to train on, in the order of sampling
    scalars: dict[str, float]


class GroupScheduler:
    """The rollouts of a run. `next` is collective over the world, and gives every process the same."""

    def __init__(self, config: Config, *, sampler: Sampler, monitor: Monitor, prompts: Sequence[Prompt]) -> None:
        self._config, self._sampler, self._monitor, self._prompts = config, sampler, monitor, prompts
        self._order = EpochOrder(len(prompts), config.run.seed)
        self._begun: list[Begun] = []  # oldest first
        self._work = Work()  # of this engine in this step

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"order": self._order.state_dict(), "begun": [each.state_dict() for each in self._begun]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. Raises InputError if it has another data order."""
        self._order.load_state_dict(state["order"])
        self._begun = [Begun.from_state_dict(each) for each in state["begun"]]

    def next(self, step: int) -> Rollout:
        """Sample and judge batch.prompts_per_step groups for `step`.

        Groups without signal (`groups_with_signal`) are replaced by groups of the next prompts, in at most
        batch.dynamic_sampling_rounds more rounds (DAPO's dynamic sampling, arXiv 2503.14476, bounded). If that is not
        enough, groups without signal fill the step. Groups begun in one round continue in the next. A step never has a
        prompt twice, also not with groups of earlier steps or at the end of an epoch.
        """
        batch, replicas = self._config.batch, self._sampler.engine.num_replicas
        sampled: list[Group] = []
        first, self._work = 0, Work()
        in_step = {each.prompt for each in self._begun}
        for _ in range(1 + batch.dynamic_sampling_rounds):
            missing = batch.prompts_per_step - sum(groups_with_signal(sampled, self._config.algorithm))
            if missing <= 0:
                break
            wanted = -(-missing // replicas) * replicas
            self._begin(step, wanted + batch.oversampled_prompts - len(self._begun), in_step)
            asked = len(self._begun)
            sampled += self._sample(step, first=first, wanted=wanted)
            first += asked
        groups = with_signal_first(sampled, batch.prompts_per_step, self._config.algorithm)
        self._check_versions(groups, step)
        scalars = self._scalars(step, groups)
        if not batch.partial_rollouts:
            self._begun = []
        return Rollout(sampled=sampled, groups=groups, scalars=scalars)

    def _begin(self, step: int, count: int, in_step: set[int]) -> None:
        """Begin groups of the next `count` prompts that are not `in_step`, and add the prompts to `in_step`."""
        nothing = (NOTHING,) * self._config.batch.completions_per_prompt
        taken = self._order.take(count, without=in_step)
        self._begun += [Begun(prompt=i, step=step, completions=nothing) for i in taken]
        in_step.update(taken)

    def _sample(self, step: int, *, first: int, wanted: int) -> list[Group]:
        """Sample until `wanted` of the begun groups are complete, and return these. Keep the others.

        Group i gets the seeds of place `first` + i in the step.
        """
        batch, begun, settings = self._config.batch, self._begun, self._config.rollout
        with self._monitor.phase("rollout"):
            sampled = self._sampler.go_on(
                [OpenGroup(prompt=self._prompts[each.prompt], completions=each.completions) for each in begun],
                Sampling(temperature=settings.temperature, max_completion_tokens=settings.max_completion_tokens),
                seed=lambda i, j: sampling_seed(self._config.run.seed, step, first + i, j),
                wanted=wanted if batch.oversampled_prompts else None,
                awaited=sum(each.step < step and step - each.step >= batch.partial_rollout_steps for each in begun),
            )
        with self._monitor.phase("verify"):
            groups = self._sampler.judge(sampled)
        self._work += sampled.work
        rest = self._sampler.rest(sampled) if batch.oversampled_prompts else {}
        self._begun = [replace(begun[i], completions=completions) for i, completions in rest.items()]
        return groups

    def _check_versions(self, groups: Sequence[Group], step: int) -> None:
        """Check that all tokens come from the current weights, or from those of steps whose groups may be carried."""
        batch, present = self._config.batch, step - 1
        oldest = max(0, present - batch.partial_rollout_steps) if batch.partial_rollouts else present
        known = list(range(oldest, present + 1))
        assert {group.weight_version for group in groups} == {present}, "groups of another step"
        for completion in (c for group in groups for c in group.completions):
            versions = [span.weight_version for span in completion.spans]
            num_tokens = sum(span.num_tokens for span in completion.spans)
            assert num_tokens == len(completion.token_ids), "tokens without a weight version"
            assert versions == [v for v in known if v in versions], f"sampled from weights {versions}, not from {known}"

    def _scalars(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """Return the rollout's scalars, by the names of monitor/scalars.py."""
        batch = self._config.batch
        scalars: dict[str, float] = {
            "rollout/decode_steps": self._work.steps,
            "rollout/prefix_cached": self._work.cached_tokens / max(1, self._work.prompt_tokens),
        }
        if not batch.oversampled_prompts:
            return scalars
        left = "carried" if batch.partial_rollouts else "dropped"
        scalars[f"rollout/{left}_groups"] = len(self._begun)
        scalars[f"rollout/{left}_tokens"] = sum(each.num_tokens for each in self._begun)
        if batch.partial_rollouts:
            spans = [span for group in groups for completion in group.completions for span in completion.spans]
            ages = [(step - 1 - (span.weight_version or 0), span.num_tokens) for span in spans]
            stale = sum(tokens for age, tokens in ages if age)
            scalars["rollout/stale_tokens"] = stale / sum(tokens for _, tokens in ages)
            scalars["rollout/stale_steps"] = sum(age * tokens for age, tokens in ages) / max(1, stale)
        return scalars


def with_signal_first(groups: Sequence[Group], count: int, settings: AlgorithmConfig) -> list[Group]:
    """Return the first `count` groups with signal, in the order of sampling. The first without fill missing places."""
    signal = groups_with_signal(groups, settings)
    ranked = sorted(range(len(groups)), key=lambda i: not signal[i])
    return [groups[i] for i in sorted(ranked[:count])]
