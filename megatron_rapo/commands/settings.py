"""Describe the settings of a run: type, unit, limits, default, effect, and what each needs and excludes.

    megatron-rapo settings
    megatron-rapo settings batch
    megatron-rapo settings algorithm.clip_high
    megatron-rapo settings | grep -i -B 9 "dynamic sampling"

docs/settings.md has the same text.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_rapo.commands.arguments import command_parser
from megatron_rapo.config.describe import SectionDescription, Setting, select

TABLE_COLUMNS = 100
"""Width of a terminal from which settings are shown as a table, columns. A narrower one gets a list."""
_INDENT = "    "
_MARKDOWN_HEAD = """\
# Settings

A configuration is a TOML file with the sections below. On the command line, `--set section.field=value` changes a
setting. Unknown names, values out of their limits and combinations that cannot work are refused before anything starts.
[checks.md](checks.md) says what else is checked once the model, the number of processes and the machine are known.

`python -m megatron_rapo settings [SECTION[.FIELD]]` prints the same on a terminal. This page is generated from the
docstrings in `megatron_rapo/config/`. Change them there, then run
`python -m megatron_rapo settings --markdown > docs/settings.md`.
"""
_DOCS_PAGE = re.compile(r"\bdocs/(\w+\.md)")
_SETTING = re.compile(r"(?<![\w./`])[a-z]+\.[a-z_0-9]+(?:\.[a-z_N]+)*(?:=[a-z0-9_]+)?(?![\w/`])")


def main(arguments: Sequence[str]) -> int:
    """Print the settings that the arguments name. Raises InputError for a name that is not there."""
    parser = command_parser("settings", __doc__ or "")
    parser.add_argument("name", nargs="?", metavar="SECTION[.FIELD]", help="what to describe; everything by default")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, as docs/settings.md has it")
    options = parser.parse_args(arguments)
    chosen = select(options.name)
    console = Console(highlight=False)
    try:
        if options.markdown:
            print(markdown(chosen), end="", flush=True)
        elif console.is_terminal and console.width >= TABLE_COLUMNS:
            console.print(*map(table, chosen), sep="\n\n")
        else:
            print("\n".join(line for section in chosen for line in plain(section, console.width)), flush=True)
    except BrokenPipeError:  # head has seen enough; Python flushes what is left when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def markdown(chosen: Sequence[SectionDescription]) -> str:
    """Return the page docs/settings.md for these sections."""
    links = " · ".join(f"[{section.name}](#{section.name})" for section in chosen)
    parts = [_MARKDOWN_HEAD, f"{links}\n"]
    for section in chosen:
        parts.append(f"## {section.name}\n\n{_as_markdown(_purpose(section))}\n")
        parts += map(_markdown_setting, section.settings)
    return "\n".join(parts)


def _markdown_setting(setting: Setting) -> str:
    paragraphs = [f"### `{setting.name}`", _as_markdown(setting.facts), _as_markdown(setting.effect)]
    if setting.remarks:
        paragraphs.append("\n".join(f"- **{name}**: {_as_markdown(note)}." for name, note in setting.remarks.items()))
    return "\n\n".join(paragraphs) + "\n"


def _as_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, but with names of settings as code and pages as links."""
    escaped = re.sub(r"[\\*<>\[\]]", r"\\\g<0>", text)
    return _DOCS_PAGE.sub(r"[\1](\1)", _SETTING.sub(r"`\g<0>`", escaped))


def plain(section: SectionDescription, width: int) -> Iterator[str]:
    """Yield the lines of a section as a list that a terminal of `width` columns shows without cutting words."""
    yield from textwrap.wrap(f"[{section.name}] {_purpose(section)}", width)
    yield ""
    for setting in section.settings:
        yield setting.name
        for paragraph in (setting.facts, *_sentences(setting)):
            yield from textwrap.wrap(
                paragraph,
                width,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_on_hyphens=False,
                break_long_words=False,
            )
        yield ""


def table(section: SectionDescription) -> Table:
    """Return a section as a table for a wide terminal."""
    shown = Table(title=Text(f"[{section.name}] {_purpose(section)}"), title_justify="left", show_lines=True)
    shown.add_column("setting", style="bold", no_wrap=True)
    shown.add_column("value", ratio=1, overflow="fold")
    shown.add_column("what it does", ratio=2, overflow="fold")
    for setting in section.settings:
        shown.add_row(*map(Text, (setting.name, setting.facts, "\n".join(_sentences(setting)))))
    return shown


def _sentences(setting: Setting) -> list[str]:
    return [setting.effect, *(f"{name}: {note}." for name, note in setting.remarks.items())]


def _purpose(section: SectionDescription) -> str:
    return section.purpose + (" This section is required." if section.required else "")
