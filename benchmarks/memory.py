"""Memory in use and at its most: of a GPU what torch's allocator has given out, on a CPU the process's resident set."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from benchmarks.environment import fields_of


def reset_peak_bytes(device: str) -> int:
    """Forget the peak (on Linux: proc_pid_clear_refs(5)); what is in use, which it is now."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        return peak_bytes(device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(device: str) -> int:
    """Return the peak memory since the last reset, also of very short peaks."""
    if device == "cpu":
        return int(fields_of("/proc/self/status")["VmHWM"].removesuffix("kB")) * 1024
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def available_bytes(device: str) -> int:
    """Memory that nothing has."""
    if device == "cpu":
        return int(fields_of("/proc/meminfo")["MemAvailable"].removesuffix("kB")) * 1024
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def release() -> None:
    """Free what nobody has any more, cycles and all, and on a GPU give it back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
