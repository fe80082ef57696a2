"""What every benchmark says of the machine it ran on, and how it ends."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]
NO_GPU = 2
"""Exit status of what needs a GPU where there is none."""


def environment(*distributions: str) -> dict[str, Any]:
    """Date, processor, GPU and versions: Python's, torch's and those of the `distributions` that are installed."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": fields_of("/proc/cpuinfo").get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "memory_gib": round(int(fields_of("/proc/meminfo")["MemTotal"].removesuffix("kB")) / 2**20),
        "gpu": _gpu(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **_versions(("torch", *distributions))},
    }


def _gpu() -> dict[str, Any] | None:
    """Describe the GPU in use. Without nvidia-smi the driver has no version."""
    if not torch.cuda.is_available():
        return None
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        driver = said[0] if said else None
    return {
        "name": torch.cuda.get_device_name(),
        "memory_gib": round(torch.cuda.get_device_properties().total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _versions(distributions: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fields_of(path: str) -> dict[str, str]:
    """Return the fields of a /proc file with lines "name: value". The first of equal names counts."""
    found: dict[str, str] = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def child_environment(threads: int = 1) -> dict[str, str]:
    """Return the environment of a process that runs a module of this repository on `threads` threads."""
    path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def refuse_without_gpu(what: str) -> None:
    """End the program, with NO_GPU, where there is no GPU."""
    if not torch.cuda.is_available():
        say(f"{what}: needs a GPU, and torch {torch.__version__} finds none; nothing was measured.")
        sys.exit(NO_GPU)


def conclude(result: Mapping[str, Any], *, check: bool) -> int:
    """Print the result, and which of its "targets" were missed. The exit status: 1 for that, where it is checked."""
    print(as_json(result))
    missed = [target for target in result["targets"] if not target["met"]]
    for target in missed:
        say(f"missed: {target}")
    return int(check and bool(missed))


def as_json(result: Mapping[str, Any]) -> str:
    """Format as JSON, with each innermost object on one line."""
    return re.sub(r"\{[^{}]*\}", lambda inner: " ".join(inner.group().split()), json.dumps(result, indent=2))


def say(text: str) -> None:
    """To people: standard output has the result."""
    print(text, file=sys.stderr, flush=True)
