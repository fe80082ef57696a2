"""README is short, links lead somewhere, and each code block of README and docs is what it seems to be.

Sphinx checks the links of docs/ (tests/run.sh), tests/test_extending.py the blocks of docs/extending.md.
"""

from __future__ import annotations

import argparse
import doctest
import importlib.util
import io
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo import cli
from megatron_rapo.config.file import load_config
from megatron_rapo.data import template_of
from tests.docs_workspace import make_workspace
from tests.settings import MINIMAL
from tests.short_runs import ROOT
from tests.test_troubleshooting import SOURCE, VALUE

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
LANGUAGES = {"bash", "python", "text", "toml"}
NEEDS = r"# needs (\d+ GPUs|a Slurm cluster|the network|the original files|a browser|minutes)(?:;|$)"
"""A comment that says what CI lacks. It stands behind a command, or above commands up to the next empty line."""
COMMAND = r"(?:megatron-rapo|python -m megatron_rapo) "
OTHERS = (
    r"python -m (?:tests|benchmarks)\.",
    "python -m pytest -n0 tests/",
    r"\./",
    r"\. \.venv/bin/activate$",
    r"ruff check \. && ruff format --check \. && mypy$",
    r"(?:\w+=\S+ )*sbatch slurm/",
    r"SITE=\$\(python -c \"import sysconfig; print\(sysconfig.get_paths\(\)\['purelib'\]\)\"\)$",
    "(?:diff|head|less|sha256sum) ",
)
"""How every other line of a bash block begins."""


@dataclass(frozen=True)
class Line:
    """A command of a bash block, without its comment."""

    page: str
    text: str
    needs: str | None

    @property
    def is_ours(self) -> bool:
        """Say whether it is a command of this package."""
        return re.match(COMMAND, self.text) is not None

    @property
    def words(self) -> list[str]:
        """Return the words behind `megatron-rapo`, as bash expands them; without a redirection."""
        words = re.sub(COMMAND, "", re.split(r" > ", self.text)[0])
        return subprocess.check_output(["bash", "-c", f"printf '%s\\n' {words}"], text=True).splitlines()


def blocks(page: str, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def lines(page: str) -> list[Line]:
    """Return the commands of a page's bash blocks."""
    found = []
    for block in blocks(page, "bash"):
        for part in block.replace("\\\n", " ").split("\n\n"):
            needs_all = None
            for line in part.splitlines():
                text, comment = re.fullmatch(r"(.*?)\s*((?:(?<!\S)#\s.*)?)", line).groups()
                needs = re.match(NEEDS, comment)
                if text:
                    found.append(Line(page, re.sub(r"\s+", " ", text), needs[1] if needs else needs_all))
                elif needs:
                    needs_all = needs[1]
    return found


LINES = [line for page in PAGES for line in lines(page)]
TEXTS = [text for page in PAGES for text in blocks(page, "text")]


def test_every_block_has_a_language() -> None:
    """No block is indented either, because such a block has no language."""
    for page in PAGES:
        prose = re.sub(r"^```(\w+)\n.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        assert "```" not in prose and not re.search(r"\n\n    \S", prose), page
        languages = re.findall(r"^```(\w+)$", (ROOT / page).read_text(), re.MULTILINE)
        assert set(languages) <= LANGUAGES, page


def test_what_a_command_needs_is_one_of_a_few_things() -> None:
    for page in PAGES:
        for block in blocks(page, "bash"):
            assert len(re.findall("# needs ", block)) == len(re.findall(NEEDS, block, re.MULTILINE)), block
    assert {line.needs for line in LINES} > {None, "8 GPUs", "a Slurm cluster", "the network"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Enter a folder that has the files which the commands name; mine.toml is that of README."""
    (mine,) = blocks("README.md", "toml")
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_workspace(folder, mine)
        yield folder


class Parsed(Exception):
    """A command line has been taken apart, and nothing was done."""


def parsed(words: list[str]) -> argparse.Namespace:
    """Return what the command line makes of these words, without doing it."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        raise Parsed(parse(parser, *arguments))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as raised:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        cli.main(words)
    (options,) = raised.value.args
    return options


def test_commands_that_cannot_run_here_are_commands(workspace: Path) -> None:
    """Each is parsed, and so is what `launch` starts; its settings are settings."""
    found = [line for line in LINES if line.is_ours and line.needs]
    started = []
    for line in found:
        words = line.words
        if words[0] == "tensorboard":  # takes any option, for TensorBoard
            continue
        options = parsed(words)
        if words[0] == "launch":
            place = next(place for place, word in enumerate(words) if word in ("train", "evaluate"))
            options = parsed(words[place:])
        if hasattr(options, "set"):
            config = load_config(options.config, options.set)
            started.append(config.run.folder)
            assert config.evaluation.data is not None, line  # `evaluate` needs it
    assert len(found) > 15 and len(started) > 5


def test_other_lines_name_what_is_there(workspace: Path) -> None:
    """Scripts, modules, and the files of the repository, of a Python environment or of a run."""
    site = sysconfig.get_paths()["purelib"]
    for line in LINES:
        if line.is_ours:
            continue
        assert any(re.match(form, line.text) for form in OTHERS), line
        for module in re.findall(r"-m ([\w.]+)", line.text):
            assert importlib.util.find_spec(module), line
        files = [word for word in line.text.replace("$SITE", site).split() if "/" in word and "=" not in word]
        missing = [file for file in files if not (ROOT / file).exists() and not (workspace / file).exists()]
        assert line.needs or not missing, line


STATUS = {"megatron-rapo audit examples/quickstart.toml --set algorithm.log_rho_cap=0.3": 1}
"""Exit status of commands that do not end with 0."""
RUN = list({line.text: line for line in LINES if line.is_ours and not line.needs}.values())


@pytest.fixture(scope="module")
def run(workspace: Path) -> Callable[..., tuple[int, str]]:
    """run(words...): exit status of a command and what it prints; it runs once."""

    @cache
    def once(*words: str) -> tuple[int, str]:
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            return cli.main(words), printed.getvalue()

    return once


@pytest.mark.parametrize("line", RUN, ids=lambda line: f"{line.page}: {line.text}")
def test_a_command_runs(line: Line, run: Callable[..., tuple[int, str]]) -> None:
    status, printed = run(*line.words)
    assert status == STATUS.get(line.text, 0), printed


SHOWN = {
    "...\nforward_kl_k3": "audit examples/baselines/grpo_k3.toml",
    "...\nforward_kl is NOT": "audit examples/quickstart.toml --set algorithm.log_rho_cap=0.3",
    "aime25/0 by abel": "prepare-data show data/aime25.parquet --template abel",
    "error: batch.completions_per_prompt=1": "preflight mine.toml --gpus 8 --set batch.completions_per_prompt=1",
}
"""First words of a text, and the command that prints it. `...` in a text stands for anything."""
RECORDED = (
    "clipped surrogate",  # a formula
    "first rollout, 512 completions",
    "held-out problems before training",
    "base other difference",
    "runs/evaluation/smollm2 on 100 problems",
    "score: 5.220 s",
)
"""First words of texts that no command of these tests prints."""


@pytest.mark.parametrize(("first", "command"), SHOWN.items())
def test_a_command_prints_what_the_docs_show(first: str, command: str, run: Callable[..., tuple[int, str]]) -> None:
    (text,) = [text for text in TEXTS if text.startswith(first)]
    _, printed = run(*command.split())
    shown = ".*".join(re.escape(" ".join(part.split())) for part in text.split("..."))
    assert re.fullmatch(shown, " ".join(printed.split())), printed


def test_an_error_in_the_docs_is_one_that_the_code_prints() -> None:
    """All fixed parts of a message of the source are in it, in their order."""
    found = [" ".join(text.removeprefix("error: ").split()) for text in TEXTS if text.startswith("error: ")]
    messages = {source for source in SOURCE if len(source.replace(VALUE, "")) > 60}
    assert len(found) == 5
    for text in found:
        assert any(re.fullmatch(".+".join(map(re.escape, each.split(VALUE))), text) for each in messages), text


def test_every_other_text_is_known_to_be_recorded() -> None:
    others = [" ".join(text.split()) for text in TEXTS if not text.startswith((*SHOWN, "error: "))]
    assert len(others) == len(RECORDED)
    assert all(text.startswith(RECORDED) for text in others)


@pytest.mark.parametrize(
    ("first", "file"),
    [
        ("MISTRAL = Family(", "megatron_rapo/models/families.py"),
        ("FAMILY_SETTINGS = {", "tests/tiny_models.py"),
        ("save_tiny_model(", "tests/mcore/conftest.py"),
        ('"TP1 mistral": ', "tests/mcore/layouts.py"),
    ],
)
def test_the_family_that_the_guide_adds_is_in_the_tree(first: str, file: str) -> None:
    """Line by line, but for indentation and types."""
    parts = [part for text in blocks("docs/adding_a_model.md", "python") for part in text.split("\n\n")]
    (part,) = [part for part in parts if part.startswith(first)]
    source = re.sub(r"^(\s*\w+): [^=(]+ = ", r"\1 = ", (ROOT / file).read_text(), flags=re.MULTILINE)
    theirs = [line.strip() for line in source.splitlines()]
    ours = [line.strip() for line in part.splitlines()]
    assert len(parts) == 4 and any(theirs[i : i + len(ours)] == ours for i in range(len(theirs)))


def test_settings_in_the_docs_are_settings(tmp_path: Path) -> None:
    """A block that names sections is a configuration, or a part of one. Every setting of it is taken."""
    (tmp_path / "minimal.toml").write_text(MINIMAL)
    texts = [text for page in PAGES for text in blocks(page, "toml")]
    found = [text for text in texts if re.search(r"^\[\w+\]$", text, re.MULTILINE)]
    assert len(found) >= 2
    for text in found:
        (tmp_path / "block.toml").write_text(f'base = "minimal.toml"\n{text}')
        config = load_config(tmp_path / "block.toml").model_dump(mode="json")
        for section, settings in tomllib.loads(text).items():
            assert config[section].items() >= settings.items()
    (template,) = set(texts) - set(found)
    (tmp_path / "template.toml").write_text(template)
    assert template_of(str(tmp_path / "template.toml")).stop == ("Problem:",)
