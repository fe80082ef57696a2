"""The [reward] section: what a completion is worth, and the processes that judge it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_rapo.config.section import MAX_MIB, MAX_SECONDS, MAX_TOKENS, MAX_VALUE, Section
from megatron_rapo.errors import shortened

OWN_TERMS = ("correctness", "format", "length")
"""Names of the built-in terms (rewards/terms.py)."""
_End = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]
_LEAST_SPREAD = 1e-5
"""Smallest width of the range, relative to the rewards, and absolute below 1. float32 has steps of 6e-8."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
_LONGEST_MARK = 100  # characters


def _form_of_answer(value: Any) -> Any:
    """Check `reward.answer`; verifier/answers.py reads it."""
    kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value in ("boxed", "last_number"):
        return value
    if kind == "tag" and _TAG.fullmatch(name):
        return value
    if kind == "after" and name.strip() and len(name) <= _LONGEST_MARK and name.isprintable():
        return value
    if kind == "tag":
        why = "a tag is named by up to 64 letters, digits, - and _, a letter first; write e.g. tag:answer"
    elif kind == "after":
        why = f"a mark is one line of 1 to {_LONGEST_MARK} characters, not blank; write e.g. after:####"
    else:
        why = "no such form of an answer; write boxed, after:MARK (say after:####), last_number or tag:NAME"
    raise ValueError(f"reward.answer={shortened(repr(value))}: {why}.")


def _number_of_workers(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= _MOST_WORKERS):
        return value
    raise ValueError(
        f"reward.workers={shortened(repr(value))}: not a number of processes; set auto, or a number from 1 to "
        f"{_MOST_WORKERS}."
    )


_MOST_WORKERS = 1024


class LengthConfig(Section):
    """Penalise long completions, linearly from 0 at `free_tokens` to `penalty` at `full_tokens`."""

    free_tokens: int = Field(ge=0, le=MAX_TOKENS)
    """Take no penalty from completions of this length or less.

    Unit: tokens.
    Limits: below reward.length.full_tokens.
    """
    full_tokens: int = Field(ge=1, le=MAX_TOKENS)
    """Take the full penalty from completions of this length or more.

    Unit: tokens.
    Limits: not above rollout.max_completion_tokens.
    """
    penalty: float = Field(gt=0, le=MAX_VALUE)
    """Take this much from the reward of a completion that has full_tokens.

    Unit: reward.
    """


class FunctionConfig(Section):
    """Add a function of the user's own as a term of the reward (rewards/user_functions.py says how it is called)."""

    name: str
    """Name the term; its metric is reward/term/NAME.

    Limits: lower-case letters, digits and _, a letter first; not correctness, format or length; unique among the terms.
    """
    function: str
    """Call this function: FILE.py:FUNCTION, MODULE:FUNCTION, or the name of an entry point in the group
    megatron_rapo.rewards. docs/rewards.md says what arguments it gets."""
    range: tuple[_End, _End] = Field(strict=False)
    """Give the lowest and the highest value that the function returns. Any other value stops the run, since phi depends
    on the range of the reward.

    Unit: reward.
    Limits: the first below the second.
    """
    weight: float = Field(default=1.0, gt=0, le=MAX_VALUE)
    """Multiply the function's values by this weight.

    Unit: none.
    """


class RewardConfig(Section):
    """Compute a completion's reward: its verdict, minus a length penalty, plus functions of your own."""

    correct: float = Field(default=1.0, ge=-MAX_VALUE, le=MAX_VALUE)
    """Give this reward to a completion whose answer is right.

    Unit: reward.
    Limits: above reward.wrong and reward.unformatted.
    """
    wrong: float = Field(default=0.0, ge=-MAX_VALUE, le=MAX_VALUE)
    """Give this reward to a completion whose answer is not right, or not decided in time.

    Unit: reward.
    Limits: below reward.correct.
    """
    unevaluated: Literal["wrong", "correct"] = "wrong"
    """Treat the right value with arithmetic left to do (789*6 for 4734) as a wrong or as a correct answer."""
    unformatted: float = Field(default=0.0, ge=-MAX_VALUE, le=MAX_VALUE)
    """Give this reward to a completion that has no answer in the form of reward.answer.

    Unit: reward.
    Limits: below reward.correct.
    Also called: format reward.
    """
    answer: Annotated[str, BeforeValidator(_form_of_answer)] = "boxed"
    """Find a completion's answer in this form. boxed: the last \\boxed{...}. after:MARK: the rest of the line after the
    last MARK, for example after:####. last_number: the last number. tag:NAME: the last <NAME>...</NAME>.

    Limits: a MARK is one line of 1 to 100 characters; a NAME has up to 64 letters, digits, - and _, a letter first.
    """
    length: LengthConfig | None = None
    """Take a penalty from long completions. It rises linearly from 0 at free_tokens to penalty at full_tokens.

    Default: no penalty.
    Also called: overlong reward shaping (DAPO), soft overlong punishment.
    """
    functions: tuple[FunctionConfig, ...] = Field(default=(), strict=False)
    """Add reward terms of your own. Each is a table with the settings below.

    Default: no terms of your own.
    Also called: custom reward function.
    """
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_number_of_workers)] = "auto"
    """Start this many verifier processes for each training process. auto takes the training process's share of the
    node's cores, less one, from 1 to 16.

    Unit: processes.
    Limits: 1 to 1,024.
    """
    timeout_s: float = Field(default=5.0, gt=0, le=MAX_SECONDS)
    """Kill the worker and count the answer as timed out when judging one answer takes longer.

    Unit: seconds.
    Limits: not above reward.budget_s.
    """
    budget_s: float = Field(default=120.0, gt=0, le=MAX_SECONDS)
    """Wait at most this long for the verdicts of a rollout, or of a part of an evaluation. Answers not judged by then
    are timed out. Judging that overlaps with sampling does not count.

    Unit: seconds.
    Limits: at least reward.timeout_s; below run.timeout_s.
    """
    memory_mib: int = Field(default=1024, ge=512, le=MAX_MIB)
    """Limit the address space of each verifier process.

    Unit: MiB.
    """

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        if self.correct <= max(self.wrong, self.unformatted):
            raise ValueError(
                f"reward.correct={self.correct}: a right answer must earn more than any other "
                f"(wrong={self.wrong}, unformatted={self.unformatted}); raise reward.correct."
            )
        if self.length and self.length.free_tokens >= self.length.full_tokens:
            raise ValueError(
                f"reward.length.free_tokens={self.length.free_tokens}: the penalty must rise from there to "
                f"full_tokens={self.length.full_tokens}; set free_tokens < full_tokens."
            )
        if self.budget_s < self.timeout_s:
            raise ValueError(
                f"reward.budget_s={self.budget_s}: not enough for one answer's deadline, reward.timeout_s="
                f"{self.timeout_s}; raise reward.budget_s or lower timeout_s."
            )
        lowest, highest = self.range
        if 0 < highest - lowest < _LEAST_SPREAD * max(1.0, abs(lowest), abs(highest)):
            raise ValueError(
                f"reward.correct={self.correct}: all rewards are from {lowest} to {highest}, too close for float32 to "
                "tell them apart; set values further apart, around 0."
            )
        for index, function in enumerate(self.functions):
            self._check_function(index, function)
        return self

    def _check_function(self, index: int, function: FunctionConfig) -> None:
        field, name, (lowest, highest) = f"reward.functions.{index}", function.name, function.range
        taken = (*OWN_TERMS, *(earlier.name for earlier in self.functions[:index]))
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{field}.name={name!r}: names a metric; write lower-case letters, digits and _, a letter first."
            )
        if name in taken:
            raise ValueError(f"{field}.name={name!r}: is the name of another term; choose one of its own.")
        if lowest >= highest:
            raise ValueError(
                f"{field}.range=[{lowest}, {highest}]: a term that is always the same does nothing, and a range goes "
                "up; write the lowest, then the highest value."
            )

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest reward that a completion can have."""
        ends = [(min(self.wrong, self.unformatted), self.correct)]
        if self.length:
            ends.append((-self.length.penalty, 0.0))
        ends += [(each.weight * each.range[0], each.weight * each.range[1]) for each in self.functions]
        # Round once, as rewards/terms.py does for a reward, so that no reward is an ulp outside.
        return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)

    @property
    def middle(self) -> float:
        """Return the middle of the range. Metrics are split there into low and high rewards."""
        lowest, highest = self.range
        return (lowest + highest) / 2
