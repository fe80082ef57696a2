"""Which completions of a rollout are written down token by token, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from megatron_rapo.config import MonitorConfig
from megatron_rapo.mcore.tokens import Place, TokenLogProbs
from megatron_rapo.monitor import RecordedCompletion, text_pieces
from megatron_rapo.runtime.interval import is_due
from megatron_rapo.types import Group, TrainingSequence
from megatron_rapo.verifier import Extract

OF_A_PROMPT = 4
"""Completions of one prompt, at most: enough to compare, and room for other prompts."""


def is_recorded(settings: MonitorConfig, step: int) -> bool:
    """Return whether completions of `step` (from 1) are recorded: of the first, and of every so many."""
    every = settings.rollouts_every_steps
    return is_due(step, every) or (step == 1 and every > 0)


def choose(groups: Sequence[Sequence[Group]], count: int) -> dict[Place, tuple[Group, int]]:
    """The first completions of the first prompts, `count` of them; by reward none is preferred.

    `groups` are those of each optimizer step. Returns each one's place, its group and which one of that it is.
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
    """Those of `chosen` that `log_probs` has: all on the first process, none elsewhere."""
    records = []
    for place, (group, sample) in chosen.items():
        if place not in log_probs:
            continue
        sequence, completion, of_tokens = sequences[place[0]][place[1]], group.completions[sample], log_probs[place]
        reference_L = of_tokens.reference_L
        records.append(
            RecordedCompletion(
                step=step,
                problem=group.prompt.problem.id,
                sample=sample,
                prompt=group.prompt.text,
                reference_answer=group.prompt.problem.answer,
                tokens=text_pieces(completion.token_ids.tolist(), decode),
                engine_logp=completion.logprobs.tolist(),
                trainer_logp=of_tokens.policy_L.tolist(),
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
