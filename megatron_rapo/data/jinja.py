"""Render Jinja templates in a separate process with a deadline and a memory limit.

A template is a program that came with a model. Jinja's sandbox protects Python's objects from it, but it does not
prevent endless loops and texts that fill the memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.safe_json import JSONError, parse_json

Case = dict[str, Any]
"""A template's variables for one text."""
MEMORY_BYTES = 2**30  # in addition to what the process has before the first template
SECONDS, SECONDS_A_PROMPT = 60.0, 0.01  # includes imports, which are slow if many processes use a network disk

_PROCESS = Path(__file__).with_name("jinja_process.py")
# The child gets its parent's module search path.
_BOOTSTRAP = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv[1])
runpy.run_path(sys.argv[2])["main"](*map(int, sys.argv[3:]))
"""


def render_jinja(
    name: str,
    source: str,
    variables: Mapping[str, str],
    cases: Sequence[Case],
    *,
    probes: Sequence[Case] = (),
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[list[str], list[str | None]]:
    """Render a template (`source`). Return the text of each case and of each probe (None if the probe fails).

    All cases and probes also get `variables`. The environment is the one in which transformers renders chat templates,
    except that `strftime_now` always gives the same day. Raises InputError (`data.template=name: ...`) if the template
    fails on a case or exceeds a limit.
    """
    seconds += SECONDS_A_PROMPT * len(cases)
    search_path = json.dumps([os.path.abspath(folder) for folder in sys.path])
    limits = [str(int(seconds) + 5), str(memory_bytes)]
    command = [sys.executable, "-W", "ignore", "-c", _BOOTSTRAP, search_path, str(_PROCESS), *limits]
    request = {"template": source, "variables": dict(variables), "cases": list(cases), "probes": list(probes)}
    try:
        # The deadline kills the child. If this process is killed, the child's own limit of CPU seconds ends it.
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"data.template={name}: {len(cases):,} prompts were not rendered within {seconds:.0f} s; remove slow or "
            "endless loops from the template."
        ) from None
    try:
        reply = parse_json(done.stdout)
    except JSONError as error:
        why = str(error) if done.returncode == 0 else f"its process ended with {done.returncode}"
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(
            f"data.template={name}: cannot be rendered ({why}{f': {said!r:.200}' if said else ''}); fix the template."
        ) from None
    if reply["error"] is not None:
        raise InputError(
            f"data.template={name}: fails on prompt {len(reply['texts'])} ({reply['error']!r:.300}); fix the template."
        )
    return reply["texts"], reply["probes"]
