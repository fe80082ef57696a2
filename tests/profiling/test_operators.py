"""Check the table of operators with events of known times."""

from __future__ import annotations

import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from megatron_rapo.profiling.operators import LINES, largest_operators


def event(name: str, start_ms: float, end_ms: float, *, own_ms: float, gpu_ms: float = 0.0, **kind: Any) -> Any:
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=1e3 * start_ms, end=1e3 * end_ms),
        self_cpu_time_total=1e3 * own_ms,
        self_device_time_total=1e3 * gpu_ms,
        **{"device_type": DeviceType.CPU, "is_async": False, "is_user_annotation": False, **kind},
    )


RANGE = {"is_user_annotation": True}
EVENTS = [
    event("aten::before", 0, 9, own_ms=9),  # of no phase
    event("rollout", 10, 110, own_ms=40, **RANGE),
    event("aten::mm", 20, 80, own_ms=60, gpu_ms=5),
    event("verify", 110, 120, own_ms=10, **RANGE),
    event("train", 200, 300, own_ms=10, **RANGE),
    event("layers", 200, 250, own_ms=20, **RANGE),
    event("aten::mm", 200, 210, own_ms=10, gpu_ms=30),
    event("aten::mm", 230, 250, own_ms=20, gpu_ms=1),
    event("aten::add", 299, 340, own_ms=41),  # of another thread: the phase's in which it began
    event("a_kernel", 210, 240, own_ms=0, gpu_ms=30, device_type=DeviceType.CUDA),  # aten::mm's
    event("a_wait", 210, 240, own_ms=30, is_async=True),
    event("train", 400, 401, own_ms=1, **RANGE),  # again
]


def test_each_phase_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert largest_operators(EVENTS, {"rollout", "verify", "train"}) == textwrap.dedent("""\
        rollout: 0.100 s
           host s   calls  operator
            0.060       1  aten::mm
            0.040       1  [rollout]

        verify: 0.010 s
           host s   calls  operator
            0.010       1  [verify]

        train: 0.101 s
           host s   calls  operator
            0.041       1  aten::add
            0.030       2  aten::mm
            0.020       1  [layers]
            0.011       2  [train]
        """)


def test_on_a_gpu_the_longer_of_the_two_times_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert largest_operators(EVENTS, {"train"}).splitlines()[1:4] == [
        "   host s    gpu s   calls  operator",
        "    0.041    0.000       1  aten::add",
        "    0.030    0.031       2  aten::mm",
    ]


def test_only_the_largest_are_shown() -> None:
    many = [event(f"op{i}", i, i + 1, own_ms=i) for i in range(2 * LINES)]
    shown = largest_operators([event("train", 0, 100, own_ms=0, **RANGE), *many], {"train"}).splitlines()[2:]
    assert [line.split()[-1] for line in shown] == [f"op{i}" for i in range(2 * LINES - 1, LINES - 1, -1)]
