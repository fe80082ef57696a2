"""A command that did not finish never ends with status 0, whatever code of the user's own does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_rapo.errors import InputError

FAILED = 1


@contextmanager
def only_by_returning() -> Iterator[None]:
    """Within it sys.exit(...) becomes an InputError, and os._exit(0) of this process ends it with status 1.

    Reward functions and what they import run in the training process, and os._exit ends it at once: status 0 would be
    taken for success. Processes forked from this one may end as they like. What ends the process from C, say exit(0) of
    a library, cannot be seen from here.
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
