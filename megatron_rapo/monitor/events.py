"""TensorBoard event files, written with tensorboard's own classes.

torch.utils.tensorboard wraps the same writer but cannot say what a scalar means.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata as scalar_metadata
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from megatron_rapo.monitor.scalars import describe


class EventFile:
    """One new event file in `folder`; TensorBoard reads all files of a folder as one run."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        """TensorBoard forgets what the older files of the folder say of `first_step` and later."""
        self._writer = EventFileWriter(str(folder))
        # In the first file too: TensorBoard takes a run's second START for its first restart.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float], texts: Sequence[str] = ()) -> None:
        """Write scalars under their names and markdown texts as samples/0, samples/1, ...; flushed."""
        values = [_scalar(name, value) for name, value in scalars.items()]
        values += [_text(f"samples/{i}", text) for i, text in enumerate(texts)]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _scalar(name: str, value: float) -> Summary.Value:
    metadata = scalar_metadata(display_name=name, description=describe(name))
    metadata.data_class = DATA_CLASS_SCALAR  # without it TensorBoard's fast loader drops the description
    return Summary.Value(tag=name, simple_value=value, metadata=metadata)


def _text(tag: str, markdown: str) -> Summary.Value:
    metadata: SummaryMetadata = text_metadata(display_name=tag, description="A completion of the step, as sampled.")
    return Summary.Value(
        tag=tag, tensor=make_tensor_proto(np.array([markdown.encode()], dtype=object)), metadata=metadata
    )
