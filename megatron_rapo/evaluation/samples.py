"""The file of samples: JSON lines, first the settings, then each problem with all that was sampled of it. No torch.

docs/evaluation.md describes the format. A problem is written when all its samples are judged, whole and in the data's
order; of one that a kill cut off, the rest is dropped and sampled again, with the same seeds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.atomic_write import explained
from megatron_rapo.types import Group
from megatron_rapo.verifier import Extract

FORMAT = "megatron_rapo samples 1"
SUFFIX = ".jsonl"


class SamplesError(InputError):
    """A file of samples that cannot be read, written or gone on with."""


@dataclass(frozen=True, kw_only=True)
class SampledWith:
    """Everything that decides what is sampled; a file goes on under the same only."""

    weights: str  # a digest: which model it is, wherever it lies
    problems: str  # a digest of all prompts, as tokens, and their reference answers
    template: str
    stop: list[str]  # strings at which completions stopped
    stop_token_ids: list[int]  # besides the model's end-of-sequence tokens
    dtype: str
    fp8: bool
    samples_per_problem: int
    temperature: float
    top_p: float
    max_completion_tokens: int
    seed: int
    answer: str = "boxed"  # the form of an answer, which decides the verdicts


SETTINGS = {
    "weights": "the weights of model.path",
    "problems": "the prompts and answers of evaluation.data",
    "template": "data.template",
    "stop": "rollout.stop",
    "stop_token_ids": "rollout.stop_token_ids",
    "dtype": "precision.dtype",
    "fp8": "rollout.fp8",
    "seed": "run.seed",
    "answer": "reward.answer",
}
"""What the fields of SampledWith are set by; the others are called the same in [evaluation]."""


def with_defaults(sampled_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file, with the values that held before a setting was there."""
    return {field.name: field.default for field in fields(SampledWith) if field.default is not MISSING} | {
        **sampled_with
    }


def setting_of(field: str) -> str:
    return SETTINGS.get(field, f"evaluation.{field}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion, judged."""

    seed: int
    text: str
    answer: str | None  # what was judged
    verdict: str  # an Outcome
    length: int  # tokens
    truncated: bool
    tokens: list[int]


@dataclass(frozen=True, kw_only=True)
class ProblemSamples:
    """One line of the file."""

    index: int  # of the problem among those that are evaluated, from 0
    id: str
    problem: str
    answer: str  # the reference
    prompt: str
    samples: list[Sample]

    @classmethod
    def of(cls, index: int, group: Group, seeds: Sequence[int], extract: Extract) -> ProblemSamples:
        problem = group.prompt.problem
        return cls(
            index=index,
            id=problem.id,
            problem=problem.text,
            answer=problem.answer,
            prompt=group.prompt.text,
            samples=[
                Sample(
                    seed=seed,
                    text=completion.text,
                    answer=extract(completion.text),
                    verdict=verdict.outcome.value,
                    length=len(completion.token_ids),
                    truncated=completion.truncated,
                    tokens=completion.token_ids.tolist(),
                )
                for seed, completion, verdict in zip(seeds, group.completions, group.verdicts, strict=True)
            ],
        )

    @classmethod
    def from_json(cls, content: Any) -> ProblemSamples:
        """Raises KeyError or TypeError for what is not of this form."""
        values = {field.name: content[field.name] for field in fields(cls)}
        return cls(**values | {"samples": [Sample(**sample) for sample in values["samples"]]})


class SamplesFile:
    """A file that one process writes; a second one that would is refused. Raises SamplesError, and closes like a file.

    Where it is there already, with samples under the same settings, it is gone on with: `read` calls `keep` with each
    problem that it holds, of which there are `count` then.
    """

    def __init__(self, path: Path, sampled_with: SampledWith, about: Mapping[str, Any]) -> None:
        """`about` is kept in the first line of a new file, and nothing depends on it."""
        self._path, self.count = path, 0
        if path.suffix != SUFFIX:
            raise SamplesError(f"--output {path}: holds JSON lines; name a file that ends in {SUFFIX}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "a+b")  # noqa: SIM115 (closed by __exit__)
            self._claim()
        except OSError as error:
            raise _not_writable(path, error) from None
        self._file.seek(0)
        first = self._file.readline()
        if first.endswith(b"\n"):
            self._check(first, sampled_with)
        else:  # new, or killed before it was more than a part of a line
            self._cut(0)
            self._write([{"format": FORMAT, "sampled_with": asdict(sampled_with), **about}])

    def read(self, keep: Callable[[ProblemSamples], object]) -> None:
        self._file.seek(0)
        end = len(self._file.readline())
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                problem = ProblemSamples.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise self._broken(f"not a problem's samples ({error!r})") from None
            if problem.index != self.count:
                raise self._broken(f"index={problem.index} instead of {self.count}")
            keep(problem)
            self.count, end = self.count + 1, end + len(line)
        self._cut(end)

    def append(self, problems: Sequence[ProblemSamples]) -> None:
        """They are on the disk when this returns."""
        assert [problem.index for problem in problems] == list(range(self.count, self.count + len(problems)))
        self._write([asdict(problem) for problem in problems])
        self.count += len(problems)

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise SamplesError(
                f"--output {self._path}: another evaluation is writing it; wait for it, or name another file."
            ) from None

    def _check(self, first: bytes, sampled_with: SampledWith) -> None:
        """Refuse another kind of file, or other settings, by each field that differs."""
        try:
            header = json.loads(first)
            found, known = header["format"], with_defaults(header.get("sampled_with", {}))
        except (ValueError, KeyError, TypeError):
            raise SamplesError(
                f"--output {self._path}: holds something else than samples; name another file."
            ) from None
        if found != FORMAT:
            raise SamplesError(f"--output {self._path}: format={found!r}: not {FORMAT!r}; name another file.")
        different = [
            f"{setting_of(name)} was {json.dumps(known.get(name))} and is {json.dumps(value)}"
            for name, value in asdict(sampled_with).items()
            if known.get(name) != value
        ]
        if different:
            raise SamplesError(
                f"--output {self._path}: was begun with other settings, and its samples would be of two kinds: "
                f"{'; '.join(different)}. Go on with the former, or name another file."
            )

    def _broken(self, why: str) -> SamplesError:
        return SamplesError(
            f"--output {self._path}:{self.count + 2}: {why}; remove this line and those after it, or name another file."
        )

    def _cut(self, size: int) -> None:
        self._file.truncate(size)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _not_writable(self._path, error) from None

    def __enter__(self) -> SamplesFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _not_writable(path: Path, error: OSError) -> SamplesError:
    return SamplesError(f"--output {path}: {explained(error, path.parent)}")
