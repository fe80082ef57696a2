"""Choose the completions of a rollout that are recorded token by token, and build their records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from megatron_rapo.config import MonitorConfig
from megatron_rapo.mcore.token_logprobs import Place, TokenLogProbs
from megatron_rapo.monitor import RecordedCompletion, text_pieces
from megatron_rapo.runtime.interval import is_due
from megatron_rapo.types import Group, TrainingSequence
from megatron_rapo.verifier import Extract

OF_A_PROMPT = 4
"""Largest number of recorded completions of one prompt: enough to compare, with room for other prompts."""


def is_recorded(settings: MonitorConfig, step: int) -> bool:
    """Return whether completions of `step` (from 1) are recorded: at step 1 and every rollouts_every_steps."""
    every = settings.rollouts_every_steps
    return is_due(step, every) or (step == 1 and every > 0)


def choose(groups: Sequence[Sequence[Group]], count: int) -> dict[Place, tuple[Group, int]]:
    """Choose the first `count` completions of the first prompts, whatever their rewards.

    `groups` has the groups of each optimizer step. Returns the place of each completion -> its group, and its index in
    the group.
    """
    found = [
        ((step, index * len(group.completions) + sample), (group, sample))
        for step, of_step in enumerate(groups)
        for index, group in enumerate(of_step)
        for sample in range(min(OF_A_PROMPT, len(group.completions)))
    ]
    return dict(found[:count])


def recorded(
    step: int,
    chosen: Mapping[Place, tuple[Group, int]],
    sequences: Sequence[Sequence[TrainingSequence]],
    log_probs: Mapping[Place, TokenLogProbs],
    decode: Callable[[Sequence[int]], str],
    extract: Extract,
) -> list[RecordedCompletion]:
    """Return the records of those `chosen` that `log_probs` has: all on the first process, none elsewhere."""
    records = []
    for place, (group, sample) in chosen.items():
        if place not in log_probs:
            continue
        sequence, completion = sequences[place[0]][place[1]], group.completions[sample]
        policy_L, reference_L = log_probs[place]
        records.append(
            RecordedCompletion(
                step=step,
                problem=group.prompt.problem.id,
                sample=sample,
                prompt=group.prompt.text,
                reference_answer=group.prompt.problem.answer,
                tokens=text_pieces(completion.token_ids.tolist(), decode),
                engine_logp=completion.logprobs.tolist(),
                trainer_logp=policy_L.tolist(),
                reference_logp=None if reference_L is None else reference_L.tolist(),
                advantage=sequence.advantage,
                phi=sequence.phi,
                reward=sequence.reward,
                terms={name: values[sample] for name, values in group.terms.items()},
                verdict=group.verdicts[sample].outcome.value,
                answer=extract(completion.text),
                truncated=completion.truncated,
                in_loss=sequence.in_loss,
                stale_tokens=sequence.num_stale,
            )
        )
    return records
