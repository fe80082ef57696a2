"""Record and show the progress of a run. Only rank 0 writes. No torch."""

from megatron_rapo.monitor.charts import CHARTS
from megatron_rapo.monitor.console import Console
from megatron_rapo.monitor.monitor import Monitor
from megatron_rapo.monitor.recorder import Recorder, read_rows
from megatron_rapo.monitor.rollouts import RecordedCompletion, read_lines, read_rollouts
from megatron_rapo.monitor.scalars import HISTOGRAMS, SCALARS, describe
from megatron_rapo.monitor.text import text_pieces
from megatron_rapo.monitor.timing import PhaseTimer
from megatron_rapo.monitor.writer_interface import Sample
from megatron_rapo.monitor.writer_registry import check_writers

__all__ = [
    "CHARTS",
    "HISTOGRAMS",
    "SCALARS",
    "Console",
    "Monitor",
    "PhaseTimer",
    "RecordedCompletion",
    "Recorder",
    "Sample",
    "check_writers",
    "describe",
    "read_lines",
    "read_rollouts",
    "read_rows",
    "text_pieces",
]
