"""Sphinx: `python -m sphinx -W --keep-going docs build/docs` makes the documentation a site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LEAVES_DOCS = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)#]+)[^)]*\)")

project = "megatron_rapo"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "megatron_rapo"
html_show_copyright = False
exclude_patterns = ["README.md"]  # index.rst includes it


def drop_links_out_of_docs(_app: Any, _name: str, content: list[str]) -> None:
    """Replace links to files of the repository by their text. They work on GitHub; the site has no such pages.

    Raises FileNotFoundError for a file that is not there.
    """

    def text(link: re.Match[str]) -> str:
        if not (ROOT / link["path"]).exists():
            raise FileNotFoundError(f"{link[0]}: {link['path']} is not in the repository")
        return link["text"] if "`" in link["text"] else f"`{link['text']}`"

    content[0] = _LEAVES_DOCS.sub(text, content[0])


def setup(app: Any) -> None:
    """Register what Sphinx calls."""
    app.connect("source-read", drop_links_out_of_docs)
