import os

import pytest

from megatron_rapo.verifier.worker_count import usable_cores, workers_for


@pytest.mark.parametrize(
    ("processes", "cores", "workers"),
    [(1, 1, 1), (1, 2, 1), (2, 2, 1), (1, 8, 7), (8, 64, 7), (8, 192, 16), (4, 30, 6), (16, 8, 1)],
)
def test_workers_are_a_share_of_the_cores(processes, cores, workers):
    assert workers_for(processes, cores) == workers


def test_cores_are_those_that_this_process_may_use(tmp_path):
    all_of_them, quota = len(os.sched_getaffinity(0)), tmp_path / "cpu.max"
    assert usable_cores(quota) == all_of_them
    for text, cores in {
        "max 100000": all_of_them,
        "100000 100000": 1,
        "20000 100000": 1,
        "99900000 100000": all_of_them,
    }.items():
        quota.write_text(text + "\n")
        assert usable_cores(quota) == cores
