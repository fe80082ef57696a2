"""Write Megatron's checkpoint files in this process, with digests.

megatron-core 0.16.1 forks one writer per file from a process in which gloo, vLLM and NCCL have threads. Such a fork can
hang, and the writers of a killed run stay alive forever and keep its pipes open. Megatron also keeps their results in a
server process, which outlives the run too.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_rapo.checkpoints.archive import save_bytes, save_tensor
from megatron_rapo.checkpoints.manifest import Range
from megatron_rapo.runtime.atomic_write import NewFile


@dataclass(frozen=True)
class Content:
    """The content of one checkpoint file."""

    path: Path
    objects: Sequence[tuple[WriteItem, BytesIO]]
    tensors: Sequence[tuple[WriteItem, Tensor]]  # in host memory


@dataclass
class Outcome:
    """The result of writing one rank's files."""

    results: dict[int, list[WriteResult]] = field(default_factory=dict)  # Megatron's, by the file's number
    digests: dict[str, list[Range]] = field(default_factory=dict)  # by the file's name


@functools.cache
def use_own_queue() -> None:
    """Make Megatron use a result queue in this process instead of a server process. Takes effect once."""
    filesystem_async._results_queue = queue.Queue()


def content_of(request: AsyncRequest, *, copied: bool) -> list[Content]:
    """Return what this rank must write, in host memory. If `copied`, training can change the tensors meanwhile."""
    if request.async_fn is None:
        return []
    _, buckets, _ = request.async_fn_args
    return [
        Content(Path(path), objects, [(item, tensor.to("cpu", copy=copied)) for item, tensor in tensors])
        for path, _, (objects, tensors) in buckets
    ]


def write(files: Sequence[Content]) -> Outcome:
    """Write the files and flush them to disk. Raises OSError."""
    outcome = Outcome()
    for number, content in enumerate(files):
        name = content.path.name
        with NewFile(content.path) as file:
            written = [(item, save_bytes(data.getbuffer(), file)) for item, data in content.objects]
            written += [(item, save_tensor(tensor, file)) for item, tensor in content.tensors]
            file.finish()
        outcome.results[number] = [
            WriteResult(item.index, size_in_bytes=each.length, storage_data=_StorageInfo(name, each.start, each.length))
            for item, each in written
        ]
        outcome.digests[name] = [each for _, each in written]
    return outcome


def finish(request: AsyncRequest, outcome: Outcome) -> None:
    """Let Megatron write the checkpoint's metadata. Collective over the world."""
    if outcome.results:
        _, _, results = request.async_fn_args
        results.put(outcome.results)
    for finalize in request.finalize_fns:
        finalize()
