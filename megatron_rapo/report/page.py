"""The page: template, style and scripts in one file, with the data as JSON in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("dom.js", "chart.js", "curves.js", "rollouts.js", "sections.js", "view.js")
"""In the order in which they need each other."""


def render(title: str, data: Mapping[str, Any]) -> str:
    """Return the whole HTML file.

    The data cannot leave their element, whatever models wrote. If a text is ever taken for markup, the page's policy
    still runs only its own scripts, known by their digest, and fetches nothing.
    """
    script = "\n".join(_read(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    parts = {
        "TITLE": html.escape(title),
        "POLICY": html.escape(policy, quote=True),
        "STYLE": _read("style.css"),
        "DATA": embedded(data),
        "SCRIPT": script,
    }
    before, *rest = _read("page.html").split("{{")
    pieces = [before]
    for piece in rest:  # each part is put in once, and nothing that it holds is looked at again
        name, _, following = piece.partition("}}")
        pieces += [parts[name], following]
    return "".join(pieces)


def embedded(data: Mapping[str, Any]) -> str:
    """JSON in ASCII without <, > and &: neither </script> nor <!-- can be in it, nor what is no character."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
