"""Record completions token by token, for people to read, in RUN/rollouts/step-000012.jsonl.gz.

Each line is a `RecordedCompletion`. Lists have one entry per token. A number that is not finite is null.
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

_DIGITS = 5  # decimal places of numbers; finer than float32 at -100 nats


@dataclass(frozen=True, kw_only=True)
class RecordedCompletion:
    """One completion with the results of engine, trainer, reference and verifier."""

    step: int
    problem: str  # its id
    sample: int  # index among the prompt's completions
    prompt: str
    reference_answer: str
    tokens: list[str]  # the text of each token, including special tokens
    engine_logp: list[float]  # nats
    trainer_logp: list[float]  # nats, before training on the completion
    reference_logp: list[float] | None  # nats, of pi_ref^phi / Z; None without a reference
    advantage: float
    phi: float
    reward: float
    terms: Mapping[str, float] = field(default_factory=dict)  # reward terms; the reward is their sum
    verdict: str  # a value of types.Outcome
    answer: str | None  # the answer that was judged (see `reward.answer`)
    truncated: bool  # by the length limit
    in_loss: bool
    stale_tokens: int = 0  # number of tokens, the first ones, sampled from weights of earlier steps

    def log_rho(self) -> list[float]:
        """Return log pihat_ref - log pi of each token, nats; an empty list without a reference."""
        pairs = zip(self.reference_logp, self.trainer_logp, strict=True) if self.reference_logp else ()
        return [reference - trainer for reference, trainer in pairs]

    def logprob_gap(self) -> list[float]:
        """Return engine - trainer log-probability of each token that is not stale, nats."""
        gaps = [engine - trainer for engine, trainer in zip(self.engine_logp, self.trainer_logp, strict=True)]
        return gaps[self.stale_tokens :]


def write_rollouts(folder: Path, step: int, completions: Sequence[RecordedCompletion]) -> None:
    """Write the completions of `step` atomically into the run's `folder`."""
    path = RunFolder(folder).rollout(step)
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(_finite(asdict(each)), ensure_ascii=True, allow_nan=False) + "\n" for each in completions]
    # mtime=0: the bytes do not depend on the time of writing
    write_bytes_atomically(path, gzip.compress("".join(lines).encode(), 5, mtime=0))


def drop_rollouts_after(folder: Path, step: int) -> None:
    """Delete the files of steps after `step`, which will run again."""
    for each, path in _files(folder):
        if each > step:
            path.unlink()


def read_rollouts(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the recorded steps of the run in `folder`, in order, with their files."""
    yield from sorted(_files(folder))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the completions of one file. Raises ValueError or OSError if it cannot be read."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in RunFolder(folder).rollouts.glob(f"{STEP_PREFIX}*.jsonl.gz"):
        number = path.name.removeprefix(STEP_PREFIX).partition(".")[0]
        if number.isdecimal():
            yield int(number), path


def _finite(value: Any) -> Any:
    """Return `value` with all floats rounded, and None for those that are not finite."""
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
