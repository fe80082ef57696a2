"""What flows through a training step, from the data set to the packer. No torch, no framework.

Shape legend: L tokens of one completion, N tokens of one sequence (prompt and completion).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer, as the engine returned it."""

    token_ids: np.ndarray  # [L] int32, with the end-of-sequence token where one was sampled
    logprobs: np.ndarray  # [L] float32: the engine's log-probability of each sampled token, nats
    text: str
    weight_version: int | None = None  # of the weights sampled from; None for those of the model folder
    truncated: bool  # stopped by the length limit, not by an end-of-sequence token


class Outcome(str, Enum):
    """What the verifier said of one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # no \\boxed{} to judge
    UNPARSABLE = "unparsable"  # an answer in \\boxed{} that is not mathematics
    TIMEOUT = "timeout"  # the answer's deadline passed and its worker was killed, or the batch's time was over


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verifier's answer: correctness and format, apart."""

    outcome: Outcome
    formatted: bool  # the completion holds a closed \\boxed{...}; False also where there was no time to look


@dataclass(frozen=True, kw_only=True)
class Group:
    """All completions of one prompt, judged; without rewards where nothing is learnt from them."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...] = ()
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of the rewards, which are their sums

    @property
    def has_signal(self) -> bool:
        """Its rewards differ, so that its advantages are not all 0."""
        return len(set(self.rewards)) > 1


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
    in_loss: bool = True  # False: its tokens are scored and take no part
