"""What a newcomer reads first is short, and its links lead somewhere. Sphinx checks those of docs/ (tests/run.sh)."""

from __future__ import annotations

import argparse
import doctest
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo import cli
from megatron_rapo.config.file import load_config
from tests.settings import MINIMAL
from tests.short_runs import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_README_LINES = 160


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert links and [link for link in links if not (path.parent / link).exists()] == []


def test_every_file_that_the_architecture_names_is_there() -> None:
    """In the table "to change something": files of the package, of other top folders, and beside the file before."""
    rows = re.findall(r"^\|([^|]+)\|([^|]+)\|([^|]+)\|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    missing = []
    for _, files, tests in rows:
        for cell in (files, tests):
            folder = ROOT
            for name in re.findall(r"`([\w./*-]+(?:/|\.py|\.sh))`", cell):
                places = [place / name for place in (ROOT, ROOT / "megatron_rapo", folder)]
                found = next((place for place in places if place.exists()), None)
                if found is None:
                    missing.append(name)
                else:
                    folder = found.parent
    assert len(rows) > 40 and missing == []


def test_the_examples_of_the_api_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = doctest.testfile(str(ROOT / "docs/api.rst"), module_relative=False)
    assert found.attempted > 20 and found.failed == 0


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages; "" is that of a block without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands(page: str) -> list[list[str]]:
    """The words behind `megatron-rapo` of each command of a page; of brackets, the first choice."""
    lines = "\n".join(blocks(page, "", "bash", "console")).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        command = re.match(r"\s*\$?\s*(?:python -m megatron_rapo|(?:\.venv/bin/)?megatron-rapo)\s(.*)", line)
        if command:
            chosen = re.sub(r"\[([^\]|]*)(?:\|[^\]]*)?\]", r"\1", command[1]).replace("...", "")
            words = shlex.split(re.split(r"\s[>|]\s", chosen)[0], comments=True)
            found.append(["1" if word == "N" else word for word in words])
    return found


class Parsed(Exception):
    """A command line has been taken apart, and nothing was done."""


def test_commands_in_the_docs_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is parsed as the command line parses it, and so is what `launch` starts."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        raise Parsed(parse(parser, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 30
    for words in found:
        if words[0] == "tensorboard":  # takes any option, for TensorBoard
            continue
        with pytest.raises(Parsed):
            cli.main(words)
        if words[0] == "launch":
            started = next(place for place, word in enumerate(words) if word in ("train", "evaluate"))
            with pytest.raises(Parsed):
                cli.main(words[started:])


def test_settings_in_the_docs_are_settings(tmp_path: Path) -> None:
    """A block that names sections is a configuration, or a part of one. Every setting of it is taken."""
    (tmp_path / "minimal.toml").write_text(MINIMAL)
    found = [text for page in PAGES for text in blocks(page, "toml") if re.search(r"^\[\w+\]$", text, re.MULTILINE)]
    assert len(found) >= 2
    for text in found:
        (tmp_path / "block.toml").write_text(f'base = "minimal.toml"\n{text}')
        config = load_config(tmp_path / "block.toml").model_dump(mode="json")
        for section, settings in tomllib.loads(text).items():
            assert config[section].items() >= settings.items()
