"""docs/troubleshooting.md quotes messages that the code still prints."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_rapo.config.describe import sections

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^### `(.+)`$", PAGE, flags=re.MULTILINE)
VALUE = "…"


def texts(source: str) -> Iterator[str]:
    """All strings of a module, with `VALUE` where they have a value."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


SOURCE = [text for path in sorted((REPOSITORY / "megatron_rapo").rglob("*.py")) for text in texts(path.read_text())]


def prints(quoted: str, text: str) -> bool:
    """Return whether a string of the source has all fixed parts of a quoted message in their order."""
    return bool(re.search(".*?".join(map(re.escape, quoted.split(VALUE))), text, flags=re.DOTALL))


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_source(quoted: str) -> None:
    fixed = max(quoted.split(VALUE), key=len)
    assert len(fixed) >= 15, "too little of it to be recognised"
    assert any(prints(quoted, text) for text in SOURCE)


def test_there_are_twenty_each_with_cause_and_remedy() -> None:
    assert len(QUOTED) == len(set(QUOTED)) >= 20
    for entry in re.split(r"^### .*$", PAGE, flags=re.MULTILINE)[1:]:
        assert re.match(r"\s+\*\*Cause\*\*: .+\.\n\*\*Remedy\*\*: .+\.\n", entry), entry


def test_settings_that_the_remedies_name_are_there() -> None:
    known = {setting.name for section in sections() for setting in section.settings}
    names = "|".join(section.name for section in sections())
    named = set(re.findall(rf"`((?:{names})\.[a-zN_0-9.]+)(?:=\w+)?`", PAGE))
    assert len(named) > 15 and named <= known


def test_a_message_that_changed_is_noticed() -> None:
    source = 'raise E(f"run.folder={folder}: holds an " f"earlier run; {fix}")'
    assert any(prints("run.folder=…: holds an earlier run; …", text) for text in texts(source))
    assert not any(prints("run.folder=…: has an earlier run; …", text) for text in texts(source))
    assert not any(prints("holds an earlier run=…run.folder=", text) for text in texts(source))
