"""Digest a run's inputs, the model's files and the problems, so that a resumed run can compare them."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import torch.distributed as dist
import xxhash

from megatron_rapo.checkpoints.folders import INPUTS, MODEL_FILES, CheckpointError
from megatron_rapo.checkpoints.manifest import whole
from megatron_rapo.config import ConfigError
from megatron_rapo.models.hf_weights import INDEX, model_files
from megatron_rapo.runtime.distributed import everywhere
from megatron_rapo.runtime.rank import is_first_of_node
from megatron_rapo.runtime.safe_json import JSONError, read_json
from megatron_rapo.types import Problem

READERS = 8  # threads; each digests 6 GB/s
_ROW_DIGITS = 8  # hexadecimal digits of a problem's digest


@dataclass(frozen=True)
class Inputs:
    """Digests (XXH3) of content, independent of paths."""

    model: dict[str, str]  # of each file of model.path that the run reads, by file name
    train: str  # of the training problems in order, 8 hexadecimal digits each
    evaluation: str = ""  # of the held-out problems

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, checkpoint: Path) -> Inputs | None:
        """Return a checkpoint's digests, or None if it is too old to have any. Raises CheckpointError."""
        path = checkpoint / INPUTS
        try:
            return cls(**read_json(path))
        except FileNotFoundError:
            return None
        except (JSONError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); take another checkpoint.") from None


class InputReader:
    """Digests a run's inputs in background threads, on the first process of each node."""

    def __init__(self, model: Path, train: Sequence[Problem], evaluation: Sequence[Problem] = ()) -> None:
        self._model = model
        self._found: Inputs | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._reading = self._thread.submit(_read, model, train, evaluation) if is_first_of_node() else None

    def inputs(self) -> Inputs:
        """Wait for the digests and return them. Collective over the world.

        Raises ConfigError if a file cannot be read, or if nodes have different files at the same paths.
        """
        if self._found is None:
            own = everywhere(lambda: self._reading.result() if self._reading else None)
            self._thread.shutdown()
            of_nodes: list[tuple[str, Inputs | None]] = [("", None)] * dist.get_world_size()
            dist.all_gather_object(of_nodes, (socket.gethostname(), own))
            self._found = self._same([(host, each) for host, each in of_nodes if each])
        return self._found

    def _same(self, of_nodes: Sequence[tuple[str, Inputs]]) -> Inputs:
        first_host, first = of_nodes[0]
        for host, each in of_nodes[1:]:
            where = f"on {host}: differs from {first_host}"
            if files := _different_files(first.model, each.model):
                raise ConfigError(f"model.path={self._model} {where}: {files}; copy the model again.")
            if each != first:
                raise ConfigError(f"data.train or evaluation.data {where}; copy the files again.")
        return first


def _read(model: Path, train: Sequence[Problem], evaluation: Sequence[Problem]) -> Inputs:
    files = [*sorted(model.glob("*.safetensors")), *(p for p in [model / INDEX] if p.exists()), *model_files(model)]
    try:
        with ThreadPoolExecutor(READERS) as threads:
            digests = list(threads.map(lambda path: whole(path)[0].digest, files))
    except OSError as error:
        raise ConfigError(f"model.path={model}: {error.filename} cannot be read ({error.strerror}).") from None
    by_name = {path.name: digest for path, digest in zip(files, digests, strict=True)}
    return Inputs(by_name, problem_digests(train), problem_digests(evaluation))


def problem_digests(problems: Sequence[Problem]) -> str:
    """Return 8 hexadecimal digits for each problem, from its text, answer and other columns.

    The id is left out: a row without one gets an id from the file's name, and the file may be renamed.
    """
    return "".join(_problem_digest(problem) for problem in problems)


def _problem_digest(problem: Problem) -> str:
    content = json.dumps([problem.text, problem.answer, problem.extra], sort_keys=True, default=repr)
    return xxhash.xxh32_hexdigest(content.encode())


def check_same_inputs(
    checkpoint: Path, present: Inputs, *, model: Path, data: Path, problems: Sequence[Problem]
) -> list[str]:
    """Refuse to resume from `checkpoint` with another model or other training `problems`. Raises CheckpointError.

    Return warnings: for other held-out problems, which do not affect training, and for a checkpoint without digests.
    """
    saved = Inputs.read(checkpoint)
    if saved is None:
        return [
            f"{checkpoint} is from an older version, without {INPUTS}: whether model.path and data.train have changed "
            "is unknown"
        ]
    if files := _different_files(saved.model, present.model):
        raise CheckpointError(
            f"model.path={model}: {files}; give the model that the run began with (its files except the weights are "
            f"also in {checkpoint / MODEL_FILES}), or start a new run."
        )
    if saved.train != present.train:
        raise CheckpointError(
            f"data.train={data}: {_different_problems(saved.train, present.train, problems)}; give the problems that "
            "the run began with, or start a new run."
        )
    if saved.evaluation and present.evaluation and saved.evaluation != present.evaluation:
        return ["evaluation.data holds other problems than before: do not compare its scores with earlier ones"]
    return []


def _different_files(before: dict[str, str], now: dict[str, str]) -> str:
    """Describe the files that differ, or return an empty string."""
    differences = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            differences.append(f"{name} is missing")
        elif name not in before:
            differences.append(f"{name} was not there when the run began")
        elif before[name] != now[name]:
            differences.append(f"{name} differs from the file that the run began with")
    return ", ".join(differences)


def _different_problems(before: str, now: str, problems: Sequence[Problem]) -> str:
    then, present = _rows(before), _rows(now)
    first = next(i for i, (a, b) in enumerate(zip_longest(then, present)) if a != b)
    if sorted(then) == sorted(present):
        what = "the problems are in another order than when the run began"
    elif len(then) != len(present):
        what = f"has {len(present)} problems, and the run began with {len(then)}"
    else:
        what = "the problems differ from those that the run began with"
    if first >= len(present):
        return f"{what}; the first missing one is number {first + 1}"
    return f"{what}; the first different one is number {first + 1} ({problems[first].id})"


def _rows(digests: str) -> list[str]:
    return [digests[i : i + _ROW_DIGITS] for i in range(0, len(digests), _ROW_DIGITS)]
