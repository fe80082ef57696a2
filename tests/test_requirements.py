"""What the project asks for, in pyproject.toml, and what is pinned, installed and looked at are the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from megatron_rapo.commands.doctor import PACKAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(*extras: str) -> dict[str, Requirement]:
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = [Requirement(line) for line in asked]
    return {canonicalize_name(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


def pinned(*files: str) -> dict[str, Version]:
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    pins = [re.fullmatch(r"([\w.-]+)==(\S+)", line.split("#")[0].strip()) for line in lines]
    return {canonicalize_name(pin[1]): Version(pin[2]) for pin in pins if pin}


@pytest.mark.parametrize(
    ("extras", "files"),
    [
        (("cpu",), ("requirements-cpu.txt",)),
        (("dev", "docs", "plots"), ("requirements-cpu.txt", "requirements-dev.txt")),
        (("peers",), ("requirements-cpu.txt", "requirements-peers.txt")),
        (("gpu",), ("requirements-gpu.txt",)),
    ],
    ids=str,
)
def test_every_requirement_is_pinned_to_a_version_that_it_admits(extras: tuple[str], files: tuple[str]) -> None:
    pins = pinned(*files)
    for name, requirement in required(*extras).items():
        if name == "transformer-engine":  # compiled in the Dockerfile, which says its version
            docker = re.search(r"ARG TRANSFORMER_ENGINE=(\S+)", (ROOT / "Dockerfile").read_text())
            assert docker
            pins[name] = Version(docker[1])
        assert name in pins, f"{requirement} is in none of {files}"
        assert requirement.specifier.contains(pins[name]), f"{requirement}, but {pins[name]} is pinned"


def test_doctor_asks_for_what_the_project_asks_for() -> None:
    asked = required("gpu")
    for name, package in PACKAGES.items():
        if name == "apex":  # no requirement
            continue
        [specifier] = [s for s in asked[canonicalize_name(package.distributions[0])].specifier if s.operator != "<"]
        assert (specifier.operator, specifier.version) == ("==" if package.exactly else ">=", package.least), name


def test_doctor_knows_as_tested_what_is_installed_for_tests() -> None:
    pins = pinned("requirements-cpu.txt")
    for name, package in PACKAGES.items():
        versions = [str(pins[d].public) for d in map(canonicalize_name, package.distributions) if d in pins]
        assert list(package.tested) == versions, name
