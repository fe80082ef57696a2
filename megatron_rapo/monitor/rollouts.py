"""Completions of a step, token by token, to be read by people: RUN/rollouts/step-000012.jsonl.gz.

One completion a line, as `RecordedCompletion` has it. Lists have an entry a token; a number that is not finite is null.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_rapo.runtime.atomic_write import write_bytes_atomically
from megatron_rapo.runtime.run_folder import STEP_PREFIX, RunFolder

_DIGITS = 5  # decimals of a log-probability: finer than float32 is at -100 nats


@dataclass(frozen=True, kw_only=True)
class RecordedCompletion:
    """One completion with what engine, trainer, reference and verifier said of it."""

    step: int
    problem: str  # its id
    sample: int  # which of the prompt's completions
    prompt: str
    reference_answer: str
    tokens: list[str]  # the text of each token, special ones too
    engine_logp: list[float]  # nats
    trainer_logp: list[float]  # before it trained on them
    reference_logp: list[float] | None  # of pi_ref^phi / Z; None without a reference
    advantage: float
    phi: float
    reward: float
    terms: Mapping[str, float] = field(default_factory=dict)  # of the reward, which is their sum
    verdict: str  # a value of types.Outcome
    answer: str | None  # what was judged, in the form of `reward.answer`
    truncated: bool  # by the length limit
    in_loss: bool
    stale_tokens: int = 0  # its first tokens, so many, were sampled from weights of earlier steps

    def log_rho(self) -> list[float]:
        """log pihat_ref - log pi of each token, nats; nothing without a reference."""
        pairs = zip(self.reference_logp, self.trainer_logp, strict=True) if self.reference_logp else ()
        return [reference - trainer for reference, trainer in pairs]

    def logprob_gap(self) -> list[float]:
        """Engine - trainer of each token that both have the same weights for, nats."""
        gaps = [engine - trainer for engine, trainer in zip(self.engine_logp, self.trainer_logp, strict=True)]
        return gaps[self.stale_tokens :]


def write_rollouts(folder: Path, step: int, completions: Sequence[RecordedCompletion]) -> None:
    """Into the run's `folder`; the file is there whole or not at all."""
    path = RunFolder(folder).rollout(step)
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(_finite(asdict(each)), ensure_ascii=True, allow_nan=False) + "\n" for each in completions]
    # mtime: the same bytes whenever it is written
    write_bytes_atomically(path, gzip.compress("".join(lines).encode(), 5, mtime=0))


def drop_rollouts_after(folder: Path, step: int) -> None:
    """Delete what steps after `step` left, which will be trained again."""
    for each, path in _files(folder):
        if each > step:
            path.unlink()


def read_rollouts(folder: Path) -> Iterator[tuple[int, Path]]:
    """The recorded steps of the run's `folder`, in order, with their files."""
    yield from sorted(_files(folder))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The completions of one file. Raises ValueError or OSError where it is none."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in RunFolder(folder).rollouts.glob(f"{STEP_PREFIX}*.jsonl.gz"):
        number = path.name.removeprefix(STEP_PREFIX).partition(".")[0]
        if number.isdecimal():
            yield int(number), path


def _finite(value: Any) -> Any:
    """What JSON can hold, rounded."""
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
