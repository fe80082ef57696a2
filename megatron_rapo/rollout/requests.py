"""Check requests to an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_rapo.types import Completion

MAX_SEED = 2**32  # torch's CPU generator keeps the low 32 bits of a seed
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # vLLM raises a lower temperature to 0.01 and refuses a higher one


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for sampling. Raises ValueError for a temperature that vLLM would change or refuse."""

    temperature: float  # 0 is greedy
    max_completion_tokens: int
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature={self.temperature}: vLLM samples at {MIN_TEMPERATURE} to {MAX_TEMPERATURE}, or greedily "
                "at 0; set a temperature in that range."
            )


def check_requests(
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    seeds: Sequence[int],
    begun: Sequence[Completion],
    *,
    max_sequence_tokens: int,
) -> None:
    """Raise ValueError for requests that `Engine.generating` cannot run, or would run differently than asked."""
    if not len(prompts) == len(seeds) == len(begun):
        raise ValueError(
            f"{len(prompts)} prompts, {len(seeds)} seeds, {len(begun)} begun completions: give one seed for each "
            "prompt, and a begun completion for each prompt or for none."
        )
    for index, (prompt, seed, before) in enumerate(zip(prompts, seeds, begun, strict=True)):
        num_begun = len(before.token_ids)
        most = max_sequence_tokens - num_begun - 1
        if not 1 <= len(prompt) <= most:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens: a sequence has at most {max_sequence_tokens}, of which one "
                f"must be left for the completion; give 1 to {most} tokens."
            )
        if before.finished or num_begun >= sampling.max_completion_tokens:
            raise ValueError(
                f"completion {index} has {num_begun} of {sampling.max_completion_tokens} tokens"
                f"{', and is finished' if before.finished else ''}: there is nothing left to sample; leave it out."
            )
        if not 0 <= seed < MAX_SEED:
            raise ValueError(f"seed {index} is {seed}: vLLM would not use all of it; give 0 <= seed < 2**32.")
