"""What each fact about a machine means, and the command on this one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from megatron_rapo.cli import main
from megatron_rapo.commands.doctor import GIB, PACKAGES, Facts, Finding, Gpu, judged

GOOD = Facts(
    python="3.11.7",
    versions={name: each.tested[0] for name, each in PACKAGES.items() if each.tested},
    nccl=None,
    shared_memory_bytes=8 * GIB,
    open_files=65536,
    locked_memory=-1,
)
H100 = Gpu("NVIDIA H100", 80 * GIB, (9, 0))


def found(what: str, **changes: Any) -> Finding | None:
    return next((each for each in judged(dataclasses.replace(GOOD, **changes)) if each.what == what), None)


def versions(**changes: str | None) -> dict[str, str]:
    merged = GOOD.versions | changes
    return {name: version for name, version in merged.items() if version}


def test_a_machine_with_all_that_was_tested() -> None:
    assert {each.what for each in judged(GOOD) if each.verdict != "good"} == {
        "GPU",
        "Transformer Engine",
        "apex",
    }


@pytest.mark.parametrize(
    ("what", "changes", "verdict", "said"),
    [
        ("torch", {"versions": versions(torch="2.7.1")}, "problem", "2.8 or newer is needed"),
        ("torch", {"versions": versions(torch="2.11.0+cu130")}, "note", "tested with 2.13.0"),
        ("torch", {"versions": versions(torch=None)}, "problem", "install torch>=2.8"),
        (
            "Megatron-Core",
            {"versions": versions(**{"Megatron-Core": "0.17.0"})},
            "problem",
            "exactly 0.16.1 is needed: internals of it are adapted to",
        ),
        ("Transformer Engine", {}, "note", "without it: model.layers=torch, which is slower and has no FP8"),
        ("apex", {"versions": versions(apex="0.1")}, "note", "no version has been tested"),
        (
            "/dev/shm",
            {"shared_memory_bytes": 64 * 2**20},
            "problem",
            "1 GiB or more are needed; start the container with --shm-size or --ipc=host",
        ),
        ("ulimit -n", {"open_files": 1024}, "note", "may be too few; ulimit -n 4096"),
        (
            "ulimit -l",
            {"gpus": [H100], "nccl": "2.27.5", "locked_memory": 8 * 2**20},
            "note",
            "pinned host memory and RDMA want it unlimited; ulimit -l unlimited",
        ),
        ("GPU 0", {"gpus": [H100], "nccl": "2.27.5"}, "good", "can FP8"),
        ("GPU 0", {"gpus": [Gpu("NVIDIA B200", 180 * GIB, (10, 0))], "nccl": "2.27.5"}, "good", "can FP8, MXFP8"),
        ("GPU 0", {"gpus": [Gpu("NVIDIA A100", 80 * GIB, (8, 0))], "nccl": "2.27.5"}, "good", "has no FP8"),
        ("NCCL", {"gpus": [H100]}, "problem", ""),
    ],
)
def test_what_a_fact_means(what: str, changes: dict[str, Any], verdict: str, said: str) -> None:
    finding = found(what, **changes)
    assert finding and (finding.verdict, finding.said) == (verdict, said)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "Megatron-Core" in said and "a run can start here." in said
    assert main(["doctor", "--json"]) == 0
    findings = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert findings["Megatron-Core"] == {"what": "Megatron-Core", "found": "0.16.1", "verdict": "good", "said": ""}
    assert findings.keys() >= {"Python", "/dev/shm", "ulimit -n", *PACKAGES}
