"""Render the page: template, style, scripts and data (as JSON) in one file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("dom.js", "chart.js", "curves.js", "rollouts.js", "sections.js", "view.js")
"""Each script needs those before it."""


def render(title: str, data: Mapping[str, Any]) -> str:
    """Return the whole HTML file.

    Text of models cannot leave the data's element. Even if it could, the page's security policy allows only the page's
    own scripts, by digest, and no network access.
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
    for piece in rest:  # inserted text is never searched for placeholders
        name, _, following = piece.partition("}}")
        pieces += [parts[name], following]
    return "".join(pieces)


def embedded(data: Mapping[str, Any]) -> str:
    """Return JSON in ASCII without <, > and &, so it contains no </script>, no <!-- and no invalid character."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
