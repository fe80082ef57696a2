"""What Megatron would time, as named ranges of torch.profiler: passes of each micro-batch, exchanges, the optimizer."""

from __future__ import annotations

from torch.profiler import record_function


class Ranges:
    """In the place of Megatron's timers (its configurations' `timers`): `ranges("forward-compute").start()`, `.stop()`.

    A range of each name is open at a time.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, _Range] = {}

    def __call__(self, name: str, log_level: int = 0) -> _Range:
        return self._by_name.setdefault(name, _Range(name))


class _Range:
    def __init__(self, name: str) -> None:
        self._name = name
        self._open: record_function | None = None

    def start(self, barrier: bool = False) -> None:
        """Without the barrier that a timer makes where it is asked to: that would change what is looked at."""
        self._open = record_function(self._name)
        self._open.__enter__()

    def stop(self, barrier: bool = False) -> None:
        assert self._open is not None, f"{self._name}: stopped and not started"
        self._open.__exit__(None, None, None)
        self._open = None
