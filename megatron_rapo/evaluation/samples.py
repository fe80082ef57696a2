"""Write and read the file of samples: JSON lines with the settings, then each problem with its samples. No torch.

docs/evaluation.md describes the format. A problem is written when all its samples are judged, in the data's order. A
line that a kill cut off is dropped, and its problem is sampled again with the same seeds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.atomic_write import explained
from megatron_rapo.types import Group
from megatron_rapo.verifier import Extract

FORMAT = "megatron_rapo samples 1"
SUFFIX = ".jsonl"


class SamplesError(InputError):
    """A file of samples cannot be read, written or continued."""


@dataclass(frozen=True, kw_only=True)
class SampledWith:
    """Everything that the samples depend on. A file can only be continued with the same."""

    weights: str  # digest of the model's weights
    problems: str  # digest of all prompts, as tokens, and their reference answers
    template: str
    stop: list[str]  # strings that end a completion
    stop_token_ids: list[int]  # besides the model's end-of-sequence tokens
    dtype: str
    fp8: bool
    samples_per_problem: int
    temperature: float
    top_p: float
    max_completion_tokens: int
    seed: int
    answer: str = "boxed"  # form of an answer, which decides the verdicts


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
"""Settings behind the fields of SampledWith. Other fields have the same name in [evaluation]."""


def with_defaults(sampled_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file. A setting that is newer than the file has its former fixed value."""
    newer = {field.name: field.default for field in fields(SampledWith) if field.default is not MISSING}
    return {**newer, **sampled_with}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion, judged."""

    seed: int
    text: str
    answer: str | None  # the judged part of the text
    verdict: str  # an Outcome
    length: int  # tokens
    truncated: bool
    tokens: list[int]


@dataclass(frozen=True, kw_only=True)
class ProblemSamples:
    """One line of the file."""

    index: int  # of the problem in this evaluation, from 0
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
        """Restore a line of the file. Raises KeyError or TypeError for other content."""
        values = {field.name: content[field.name] for field in fields(cls)}
        return cls(**values | {"samples": [Sample(**sample) for sample in values["samples"]]})


class SamplesFile:
    """The file of samples, a context manager. Only one process at a time may open it. Raises SamplesError.

    A file that exists with the same settings is continued. Call `read` before `append`.
    """

    def __init__(self, path: Path, sampled_with: SampledWith, about: Mapping[str, Any]) -> None:
        """Open or create the file. `about` is added to the first line of a new file, for readers only."""
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
        else:  # new, or killed within its first line
            self._file.truncate(0)
            self._write([{"format": FORMAT, "sampled_with": asdict(sampled_with), **about}])

    def read(self, keep: Callable[[ProblemSamples], object]) -> None:
        """Call `keep` with each problem in the file. Then `count` is their number, and a line cut off is removed."""
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
        self._file.truncate(end)

    def append(self, problems: Sequence[ProblemSamples]) -> None:
        """Write the next problems. They are on the disk when this returns."""
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
        """Refuse another kind of file or other settings. Name each setting that differs."""
        try:
            header = json.loads(first)
            found, known = header["format"], with_defaults(header.get("sampled_with", {}))
        except (ValueError, KeyError, TypeError):
            raise SamplesError(f"--output {self._path}: does not hold samples; name another file.") from None
        if found != FORMAT:
            raise SamplesError(f"--output {self._path}: format={found!r}: not {FORMAT!r}; name another file.")
        different = [
            f"{SETTINGS.get(name, f'evaluation.{name}')} was {json.dumps(known.get(name))} and is {json.dumps(value)}"
            for name, value in asdict(sampled_with).items()
            if known.get(name) != value
        ]
        if different:
            raise SamplesError(
                f"--output {self._path}: was begun with other settings, and they must not be mixed: "
                f"{'; '.join(different)}; use the former settings, or name another file."
            )

    def _broken(self, why: str) -> SamplesError:
        return SamplesError(
            f"--output {self._path}:{self.count + 2}: {why}; remove this line and those after it, or name another file."
        )

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _not_writable(self._path, error) from None

    def __enter__(self) -> SamplesFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _not_writable(path: Path, error: OSError) -> SamplesError:
    return SamplesError(f"--output {path}: {explained(error, path.parent)}")
