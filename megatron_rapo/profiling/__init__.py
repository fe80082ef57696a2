"""Profile single steps (--profile): the time of each operator, under the names of the phases."""

from megatron_rapo.profiling.profiler import CLOSING_S, Profiler, check_profiled

__all__ = ["CLOSING_S", "Profiler", "check_profiled"]
