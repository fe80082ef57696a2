"""Jinja templates, rendered in a process of their own that has a deadline and a memory limit.

A template is a program that came with a model. Jinja's sandbox keeps it from Python's objects, and neither from looping
for ever nor from building texts that fill the memory.
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
MEMORY_BYTES = 2**30  # more than the process has before the first template
SECONDS, SECONDS_A_PROMPT = 60.0, 0.01  # with the imports, which are slow where many start from a network disk

_PROCESS = Path(__file__).with_name("jinja_process.py")
# The child finds modules where its parent does.
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
    """Return the text of each case, and that of each probe; None for a probe that fails.

    `variables` are for all. The environment is that in which transformers renders chat templates, but for the day that
    `strftime_now` tells, which is always the same.
    Raises InputError (`data.template=name: ...`) for a template that fails on a case, or goes beyond a limit.
    """
    seconds += SECONDS_A_PROMPT * len(cases)
    search_path = json.dumps([os.path.abspath(folder) for folder in sys.path])
    limits = [str(int(seconds) + 5), str(memory_bytes)]
    command = [sys.executable, "-W", "ignore", "-c", _BOOTSTRAP, search_path, str(_PROCESS), *limits]
    request = {"template": source, "variables": dict(variables), "cases": list(cases), "probes": list(probes)}
    try:
        # The deadline kills it; its own limit of processor seconds ends it where this process was killed meanwhile.
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"data.template={name}: {len(cases):,} prompts were not there after {seconds:.0f} s; take out what loops "
            "in the template."
        ) from None
    try:
        reply = parse_json(done.stdout)
    except JSONError as error:
        why = str(error) if done.returncode == 0 else f"its process ended with {done.returncode}"
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(
            f"data.template={name}: cannot be rendered ({why}{f': {said!r:.200}' if said else ''}); mend the template."
        ) from None
    if reply["error"] is not None:
        raise InputError(
            f"data.template={name}: fails on prompt {len(reply['texts'])} ({reply['error']!r:.300}); mend the template."
        )
    return reply["texts"], reply["probes"]
