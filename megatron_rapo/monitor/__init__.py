"""What is written down and shown while a run goes on. No torch; the first process alone writes."""

from megatron_rapo.monitor.console import Console
from megatron_rapo.monitor.monitor import Monitor
from megatron_rapo.monitor.recorder import METRICS_FILE, TENSORBOARD_FOLDER, Recorder, Sample
from megatron_rapo.monitor.scalars import SCALARS, describe
from megatron_rapo.monitor.timing import PhaseTimer

__all__ = [
    "METRICS_FILE",
    "SCALARS",
    "TENSORBOARD_FOLDER",
    "Console",
    "Monitor",
    "PhaseTimer",
    "Recorder",
    "Sample",
    "describe",
]
