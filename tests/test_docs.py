"""What a newcomer reads first is short, and its links lead somewhere. Sphinx checks those of docs/ (tests/run.sh)."""

from __future__ import annotations

import doctest
import re

import pytest

from tests.short_runs import ROOT

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
