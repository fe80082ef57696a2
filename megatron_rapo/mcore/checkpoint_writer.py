"""Megatron's checkpoint files written by this process itself.

megatron-core 0.16.1 forks one writer per file, from a process in which gloo, vLLM and NCCL have threads: a fork there
may hang, and the writers of a killed run stay behind for ever, with its pipes open. It also keeps their results in a
server process, which outlives the run too.
"""

from __future__ import annotations

import functools
import queue
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async

_Writer = filesystem_async.FileSystemWriterAsync


@functools.cache
def install() -> None:
    """Have synchronous saves of this process write without other processes, once."""
    filesystem_async._results_queue = queue.Queue()
    _Writer.write_preloaded_data_multiproc = staticmethod(_write)


def _write(transforms: list[Any], use_msc: bool, rank: int, buckets: list[Any], results: queue.Queue[Any]) -> None:
    """Write `buckets` one after the other; `results` gets {bucket number: write results}, or the first exception."""
    written: dict[int, Any] = {}
    for number, bucket in enumerate(buckets):
        outcome: queue.Queue[Any] = queue.Queue()
        counter: queue.Queue[int] = queue.Queue()
        counter.put(number)  # what Megatron's function takes from it to say that it is done
        _Writer.write_preloaded_data(transforms, number, bucket, outcome, counter, use_fsync=True, use_msc=use_msc)
        _, written[number] = outcome.get_nowait()
        if isinstance(written[number], Exception):
            results.put(written[number])
            return
    results.put(written)
