"""What a start is made of, from numbers that are known."""

from __future__ import annotations

import pytest

from benchmarks.bench_startup import by_package, parts

IMPORTTIME = """\
import time: self [us] | cumulative | imported package
import time:    250000 |     250000 |   torch._C
import time:   1000000 |    1250000 | torch
something else that is said
import time:      5000 |       5000 |     vllm.config.cache
import time:     15000 |      20000 | vllm
import time:    400000 |     400000 | torchvision
"""


def test_imports_are_added_up_by_package() -> None:
    assert by_package(IMPORTTIME) == {"all": 1.67, "torch": 1.25, "torchvision": 0.4, "vllm": 0.02}


def test_parts_make_up_the_first_step() -> None:
    seconds = {"launch": 5.0, "build_engine": 4.0, "checkpoint": 0.5, "train": 2.5, "other": 0.75}
    found = parts(15.0, 2.0, seconds)
    assert found == {"torchrun": 2.0, "launch": 5.0, "build_engine": 4.0, "train": 2.5, "rest": 1.5}
    assert sum(found.values()) == pytest.approx(15.0)
