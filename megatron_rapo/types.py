"""The data types that flow through a training step, from the data set to the packer. No torch, no framework.

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
    """A problem with its prompt, as text and as tokens."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


class Span(NamedTuple):
    """Consecutive tokens of a completion that were sampled from the same weights."""

    weight_version: int | None  # None: the weights of the model folder
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer as the engine returned it, or the part sampled so far."""

    token_ids: np.ndarray  # [L] int32, including the stop token, or the token that completed a stop string
    logprobs: np.ndarray  # [L] float32: the engine's log-probability of each token when it sampled it, nats
    text: str  # up to the stop token or string; empty if not finished
    spans: tuple[Span, ...] = ()  # which weights the tokens were sampled from, in token order
    truncated: bool  # ended by the length limit, not by a stop token or string
    finished: bool = True

    def num_stale(self, weight_version: int | None) -> int:
        """Return how many tokens were sampled from other weights than `weight_version`. They are the first ones."""
        return sum(span.num_tokens for span in self.spans if span.weight_version != weight_version)

    def extended(
        self, token_ids: Sequence[int], logprobs: Sequence[float], weight_version: int | None, **ending: Any
    ) -> Completion:
        """Return the completion with more tokens, all sampled from one version of the weights.

        `ending` gives the other fields: text, truncated, finished.
        """
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
        """Return the completion with only its first `num_tokens` tokens. `ending` gives the other fields."""
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
"""A completion before its first token."""


@dataclass(frozen=True, kw_only=True)
class OpenGroup:
    """A prompt with its completions, which may be unfinished."""

    prompt: Prompt
    completions: tuple[Completion, ...]


class Outcome(str, Enum):
    """The verifier's result for the answer of one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNEVALUATED = "unevaluated"  # the right value with unfinished arithmetic: 789*6 for 4734
    NO_ANSWER = "no_answer"  # no answer in the form of `reward.answer`
    UNPARSABLE = "unparsable"  # an answer that is not mathematics
    TIMEOUT = "timeout"  # not judged before the answer's deadline or within the batch's budget


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verifier's result for one completion: correctness and format, separately."""

    outcome: Outcome
    formatted: bool  # has an answer in the form of `reward.answer`; also False if there was no time to look for one


@dataclass(frozen=True, kw_only=True)
class Group:
    """All completions of one prompt with their verdicts, and with rewards if they are trained on."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...] = ()
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # reward terms; a reward is their sum
    weight_version: int | None = None  # the engine's when the group was complete: tokens of other versions are stale


@dataclass(frozen=True, kw_only=True)
class TrainingSequence:
    """One completion as the loss needs it."""

    token_ids: np.ndarray  # [N] int32: prompt, then completion
    prompt_length: int
    engine_logprobs: np.ndarray  # [N - prompt_length] float32, nats
    advantage: float
    phi: float  # exponent of the reference distribution, in [0, 1]
    reward: float
    weight: float = 1.0  # of each token in the objective; the mean over the optimizer step's tokens is 1
    num_stale: int = 0  # number of sampled tokens, the first ones, from older weights than the step starts with
    in_loss: bool = True  # False: its tokens are scored but not trained on
