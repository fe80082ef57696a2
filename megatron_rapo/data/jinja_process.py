"""Run the process that renders Jinja templates: read a JSON request from stdin, write a JSON reply to stdout.

jinja.py runs this file without the package, so it starts in a tenth of the time that importing transformers takes. The
environment equals that of transformers' chat templates (tests/data/test_jinja.py compares them).
"""

from __future__ import annotations

import json
import os
import resource
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

DAY = datetime(2024, 7, 26)
"""The current day for templates. It is fixed, because prompts must be the same when a run is resumed. This day is the
default of Llama's template."""
MAX_CHARACTERS = 1_000_000  # of one text; more than any model's context


class GenerationBlock(Extension):
    """The `{% generation %}` block, which marks assistant text for training. Here it only renders its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own attribute)

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Return the environment of transformers' chat templates, with a fixed day."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = DAY.strftime
    return env


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Render the cases until one fails. If none fails, also render the probes."""
    reply: dict[str, Any] = {"texts": [], "error": None, "probes": []}
    always = {"tools": None, "documents": None, **request["variables"]}
    try:
        template = environment().from_string(request["template"])
        for case in request["cases"]:
            text = template.render(always | case)
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"a text of {len(text):,} characters")
            reply["texts"].append(text)
    except Exception as error:  # of any kind: a template is a program
        reply["error"] = f"{type(error).__name__}: {error}"
        return reply
    for probe in request["probes"]:
        try:
            reply["probes"].append(template.render(always | probe)[:MAX_CHARACTERS])
        except Exception:
            reply["probes"].append(None)
    return reply


def main(processor_seconds: int, memory_bytes: int) -> None:
    """Answer one request. `memory_bytes` is in addition to the memory in use before the templates run."""
    reply_to = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # other output must not be mistaken for the reply
    request = json.load(sys.stdin)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reply = answer(request)
    with reply_to:
        json.dump(reply, reply_to)
