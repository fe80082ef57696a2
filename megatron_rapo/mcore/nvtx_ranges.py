"""Turn Megatron's timers into named ranges of torch.profiler."""

from __future__ import annotations

from torch.profiler import record_function


class Ranges:
    """Replaces Megatron's timers (`timers` of its configurations): `ranges("forward-compute").start()`, `.stop()`.

    At most one range of each name is open at a time.
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
        """Open the range. Ignores `barrier`: a barrier would change the timing that is measured."""
        self._open = record_function(self._name)
        self._open.__enter__()

    def stop(self, barrier: bool = False) -> None:
        assert self._open is not None, f"{self._name}: stopped and not started"
        self._open.__exit__(None, None, None)
        self._open = None
