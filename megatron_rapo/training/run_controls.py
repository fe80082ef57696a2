"""What a run is watched and steered by, besides its settings."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rapo.monitor import Monitor
from megatron_rapo.profiling import Profiler
from megatron_rapo.runtime.signals import Signals


@dataclass(frozen=True, kw_only=True)
class RunControls:
    """The monitor, the profiler and the signals of one process of a run."""

    monitor: Monitor
    profiler: Profiler
    signals: Signals
