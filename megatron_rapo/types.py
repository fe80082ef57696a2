"""What flows through a training step, from the data set to the packer. No torch, no framework.

Shape legend: L tokens of one completion, N tokens of one sequence (prompt and completion).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of a data set."""

    id: str
    text: str
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns, passed through


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A problem as the model sees it."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


class Span(NamedTuple):
    """Tokens of a completion, one after the other, that were sampled from the same weights."""

    weight_version: int | None  # None for those of the model folder
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer, as the engine returned it; or what there is of one that it was stopped in."""

    token_ids: np.ndarray  # [L] int32, with the token that stopped it, or that completed a stop string
    logprobs: np.ndarray  # [L] float32: what the engine, with the weights that it had then, said of each token, nats
    text: str  # up to the stop token or string; empty where it is not finished
    spans: tuple[Span, ...] = ()  # the weights that its tokens were sampled from, in their order
    truncated: bool  # ended by the length limit, not by a stop token or string
    finished: bool = True

    def num_stale(self, weight_version: int | None) -> int:
        """How many of its tokens, all at its beginning, were sampled from others than these weights."""
        return sum(span.num_tokens for span in self.spans if span.weight_version != weight_version)

    def extended(
        self, token_ids: Sequence[int], logprobs: Sequence[float], weight_version: int | None, **ending: Any
    ) -> Completion:
        """With tokens after its own, sampled from the same weights; `ending` are its other fields."""
        earlier, num_tokens = self.spans, len(token_ids)
        if earlier and earlier[-1].weight_version == weight_version:
            num_tokens += earlier[-1].num_tokens
            earlier = earlier[:-1]
        return Completion(
            token_ids=np.concatenate([self.token_ids, np.array(token_ids, np.int32)]),
            logprobs=np.concatenate([self.logprobs, np.array(logprobs, np.float32)]),
            spans=(*earlier, Span(weight_version, num_tokens)) if num_tokens else earlier,
            **ending,
        )

    def shortened(self, num_tokens: int, **ending: Any) -> Completion:
        """Return its first `num_tokens` tokens; `ending` are its other fields."""
        spans, left = [], num_tokens
        for span in self.spans:
            spans.append(span._replace(num_tokens=min(left, span.num_tokens)))
            left -= spans[-1].num_tokens
        return Completion(
            token_ids=self.token_ids[:num_tokens],
            logprobs=self.logprobs[:num_tokens],
            spans=tuple(span for span in spans if span.num_tokens),
            **ending,
        )


NOTHING = Completion(
    token_ids=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32), text="", truncated=False, finished=False
)
"""What there is of a completion before its first token."""


@dataclass(frozen=True, kw_only=True)
class OpenGroup:
    """A prompt and what there is of each of its completions."""

    prompt: Prompt
    completions: tuple[Completion, ...]


class Outcome(str, Enum):
    """What the verifier said of one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNEVALUATED = "unevaluated"  # the right value, with arithmetic left to do: 789*6 for 4734
    NO_ANSWER = "no_answer"  # none in the form of `reward.answer`
    UNPARSABLE = "unparsable"  # an answer that is not mathematics
    TIMEOUT = "timeout"  # the answer's deadline passed and its worker was killed, or the batch's time was over


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verifier's answer: correctness and format, apart."""

    outcome: Outcome
    formatted: bool  # it gives an answer in the form of `reward.answer`; False also where there was no time to look


@dataclass(frozen=True, kw_only=True)
class Group:
    """All completions of one prompt, judged; without rewards where nothing is learnt from them."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...] = ()
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of the rewards, which are their sums
    weight_version: int | None = None  # of the engine when it was taken for whole: tokens of others are stale


@dataclass(frozen=True, kw_only=True)
class TrainingSequence:
    """One completion as the loss needs it."""

    token_ids: np.ndarray  # [N] int32: prompt, then completion
    prompt_length: int
    engine_logprobs: np.ndarray  # [N - prompt_length] float32, nats
    advantage: float
    phi: float  # exponent of the reference distribution, in [0, 1]
    reward: float
    weight: float = 1.0  # of each of its tokens in the objective; 1 on average over the optimizer step's tokens
    num_stale: int = 0  # its first sampled tokens, so many, are of earlier weights than those that the step begins with
    in_loss: bool = True  # False: its tokens are scored and take no part
