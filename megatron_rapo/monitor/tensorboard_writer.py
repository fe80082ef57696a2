"""Write TensorBoard event files with tensorboard's own classes.

torch.utils.tensorboard wraps the same classes but cannot write a scalar's description.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.custom_scalar.metadata import create_summary_metadata as layout_metadata
from tensorboard.plugins.histogram.metadata import create_summary_metadata as histogram_metadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata as scalar_metadata
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from megatron_rapo.monitor.charts import CHARTS, GROUPS, OPEN_ENDS
from megatron_rapo.monitor.scalars import HISTOGRAMS, describe
from megatron_rapo.monitor.writer_interface import Histograms, Sample, Scalars

BINS = 30  # of a histogram


class EventFile:
    """A new event file in a folder. TensorBoard shows all files of a folder as one run."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        """Open a new file in `folder`. TensorBoard then ignores `first_step` and later steps in older files."""
        # tensorboard's EventFileWriter is not used: its thread prints a traceback when the disk is full.
        self._file = _new_file(folder)
        self._records = RecordWriter(self._file)
        self._add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # The first file needs START too: TensorBoard takes a run's second START for its first restart.
        start = SessionLog(status=SessionLog.START)
        self._add_event(Event(wall_time=time.time(), step=first_step, session_log=start))
        self._add(first_step, [_layout()])
        self._file.flush()

    def write(self, step: int, scalars: Scalars, samples: Sequence[Sample], histograms: Histograms) -> None:
        """Write scalars under `tag(name)`, histograms under their names and samples as samples/0, ...; then flush.

        Raises OSError.
        """
        values = [_scalar(name, value) for name, value in scalars.items()]
        values += [_text(f"samples/{i}", sample.markdown()) for i, sample in enumerate(samples)]
        values += [_histogram(name, each) for name, each in histograms.items() if len(each)]
        self._add(step, values)
        self._file.flush()

    def close(self) -> None:
        with suppress(OSError):  # `write` has raised already if the disk did not accept the data
            self._file.close()

    def _add(self, step: int, values: Sequence[Summary.Value]) -> None:
        self._add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def _new_file(folder: Path) -> BinaryIO:
    """Open a new file with a name that TensorBoard recognises and that sorts after those of earlier starts."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in count():
        with suppress(FileExistsError):
            return open(folder / f"{name}.{number}", "xb")
    raise AssertionError("numbers do not end")


def tag(name: str) -> str:
    """Return the tag of a scalar: its name with a group number in front, because TensorBoard sorts groups by name."""
    return f"{GROUPS.index(name.partition('/')[0]) + 1:02}_{name}"


def _scalar(name: str, value: float) -> Summary.Value:
    metadata = scalar_metadata(display_name=name, description=describe(name))
    metadata.data_class = DATA_CLASS_SCALAR  # without this, TensorBoard's fast loader drops the description
    return Summary.Value(tag=tag(name), simple_value=value, metadata=metadata)


def _text(tag: str, markdown: str) -> Summary.Value:
    metadata: SummaryMetadata = text_metadata(display_name=tag, description="A completion of the step, as sampled.")
    return Summary.Value(
        tag=tag, tensor=make_tensor_proto(np.array([markdown.encode()], dtype=object)), metadata=metadata
    )


def _histogram(name: str, values: Sequence[float]) -> Summary.Value:
    """Return a histogram as [BINS, 3]: left edge, right edge and number of values of each bin."""
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=BINS)
    metadata: SummaryMetadata = histogram_metadata(display_name=name, description=HISTOGRAMS[name])
    metadata.data_class = DATA_CLASS_TENSOR
    bins = np.stack([edges[:-1], edges[1:], counts], axis=1)
    return Summary.Value(tag=name, tensor=make_tensor_proto(bins), metadata=metadata)


def _layout() -> Summary.Value:
    """Return the charts of the custom-scalars page."""
    categories = [
        layout_pb2.Category(
            title=section,
            chart=[
                layout_pb2.Chart(
                    title=title, multiline=layout_pb2.MultilineChartContent(tag=list(map(_pattern, names)))
                )
                for title, names in charts.items()
            ],
        )
        for section, charts in CHARTS.items()
    ]
    layout = layout_pb2.Layout(category=categories).SerializeToString()
    tensor = make_tensor_proto(np.array(layout, dtype=object))
    return Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=layout_metadata())


def _pattern(name: str) -> str:
    """Return the regular expression that matches the tags of a name in CHARTS."""
    return f"^{tag(name)}.+$" if name.endswith(OPEN_ENDS) else f"^{tag(name)}$"
