from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.launch import run_distributed

SCRIPT = """
import os, sys, time

def main():
    if sys.argv[1] == "hang" and os.environ["RANK"] == "1":
        time.sleep(3600)  # the slow one
    import torch, torch.distributed as dist
    from tests.launch import write_result
    dist.init_process_group("gloo")
    rank = torch.tensor(dist.get_rank())
    if sys.argv[1] == "fail" and rank == 1:
        raise ValueError("boom")
    dist.all_reduce(rank)
    if dist.get_rank() == 0 and sys.argv[1] == "result":
        write_result({"sum": rank.item(), "threads": torch.get_num_threads()})
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "launched.py"
    path.write_text(SCRIPT)
    return path


def test_a_result_comes_back(script: Path) -> None:
    assert run_distributed(script, 2, "result") == {"sum": 1, "threads": 1}


def test_a_failure_shows_the_failing_rank(script: Path) -> None:
    with pytest.raises(AssertionError, match=r"exit status 1(?s:.*)--- rank 1, stderr(?s:.*)ValueError: boom") as error:
        run_distributed(script, 2, "fail")
    assert "--- rank 0" not in str(error.value)


def test_a_hang_ends_with_stacks_and_leaves_nothing(script: Path) -> None:
    with pytest.raises(AssertionError, match=r"still running after 30.0 s(?s:.*)rank 1, stderr(?s:.*)launched.py"):
        run_distributed(script, 2, "hang", timeout_s=30.0)
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])]
