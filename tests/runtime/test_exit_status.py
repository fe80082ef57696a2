"""If the user's code ends the process before the end, the exit status is never 0."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.exit_status import only_by_returning
from tests.patience import HANG_S

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
from megatron_rapo import cli
from megatron_rapo.cli import main

class Parser:
    def parse_args(self, argv):
        return self
    def command(self, arguments):
        exec(sys.argv[1])
        return 0

cli._parser = Parser
status = main([])
sys.exit(status)
"""


@pytest.mark.parametrize("code", ENDS)
def test_a_command_that_did_not_finish_does_not_end_with_0(code: str) -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, code], capture_output=True, text=True, timeout=HANG_S)
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
