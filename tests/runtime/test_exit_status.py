"""If the user's code ends the process before the end, the exit status is never 0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.exit_status import only_by_returning
from tests.patience import HANG_S
from tests.settings import MINIMAL

ENDS = {
    "os._exit(0)": 1,
    "os._exit(3)": 3,
    "import threading; t = threading.Thread(target=os._exit, args=[0]); t.start(); t.join()": 1,
    "sys.exit(0)": 2,
    "sys.exit()": 2,
    "os.fork() or os._exit(0); print(os.waitstatus_to_exitcode(os.wait()[1]))": 0,  # a child may end as it likes
}
SCRIPT = """
import os, sys
from megatron_rapo import run
from megatron_rapo.cli import main

def train(*arguments, **options):
    exec(sys.argv[2])
    return True

run.train = train
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.parametrize("code", ENDS)
def test_a_command_that_did_not_finish_does_not_end_with_0(code: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(MINIMAL)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.toml"), code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert ended.returncode == ENDS[code], ended.stderr
    assert "Traceback" not in ended.stderr
    if ENDS[code] == 1:
        assert "called os._exit(0) before the end; remove that call." in ended.stderr
    if ENDS[code] == 0:
        assert ended.stdout == "0\n"


def test_sys_exit_is_an_error_and_os_exit_is_as_before_behind() -> None:
    end = os._exit
    with pytest.raises(InputError) as raised, only_by_returning():
        assert os._exit is not end
        raise SystemExit(0)
    assert str(raised.value) == "sys.exit(0) was called before the end; remove that call."
    assert os._exit is end
