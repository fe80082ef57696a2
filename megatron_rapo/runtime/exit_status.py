"""Prevent exit status 0 for a command that did not finish, even if the user's code calls exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_rapo.errors import InputError

FAILED = 1


@contextmanager
def only_by_returning() -> Iterator[None]:
    """Turn sys.exit(...) within this context into an InputError, and os._exit(0) into exit status 1.

    Reward functions and their imports run in the training process. os._exit ends it at once, and status 0 would look
    like success. Forked processes may exit with any status. An exit from C code, such as exit(0) in a library, is not
    detected.
    """
    end, process = os._exit, os.getpid()

    def checked(status: int) -> None:
        if status == 0 and os.getpid() == process:
            caller = sys._getframe(1)
            where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            print(f"error: {where} called os._exit(0) before the end; remove that call.", file=sys.stderr, flush=True)
            status = FAILED
        end(status)

    os._exit = checked  # type: ignore[assignment]
    try:
        yield
    except SystemExit as error:
        raise InputError(f"sys.exit({error.code!r}) was called before the end; remove that call.") from error
    finally:
        os._exit = end
