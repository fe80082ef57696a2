"""`settings` as users start it: on narrow and wide terminals, into a pipe, as docs/settings.md."""

import os
import pty
import re
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from megatron_rapo.commands.settings import markdown
from megatron_rapo.config.describe import sections, select
from tests.patience import HANG_S

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "settings.md"
NAMES = [setting.name for section in sections() for setting in section.settings]
BORDERS = "┏┓┗┛┡┩└┘├┤┳╇┴┼│┃━─"


def started(*arguments: str, **keywords) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megatron_rapo", "settings", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", **keywords.pop("environment", {})}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **keywords)


def piped(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
    """Status, output and errors where there is no terminal."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = started(*arguments, environment={"COLUMNS": str(columns)}, **streams)
    output, errors = process.communicate(timeout=HANG_S)
    return process.returncode, output, errors


def on_terminal(*arguments: str, columns: int) -> list[str]:
    """Lines on a real terminal of this width, without its colours."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = started(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=HANG_S) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", b"".join(pieces).decode()).replace("\r", "").splitlines()


def test_one_setting_without_a_terminal() -> None:
    assert piped("batch.partial_rollout_steps") == (
        0,
        "[batch] Set batch sizes, dynamic sampling, over-sampling and partial rollouts.\n"
        "This section is required.\n"
        "\n"
        "batch.partial_rollout_steps\n"
        "    whole number; unit: steps; 0 to 1,000,000,000; default 1\n"
        "    Carry unfinished groups into at most this many later steps, with the tokens\n"
        "    that they have, and then wait for them. 0: drop them, so that training sees\n"
        "    long completions less often.\n"
        "    Needs: batch.oversampled_prompts above 0.\n"
        "    Also called: partial rollouts, staleness.\n"
        "\n",
        "",
    )


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_everything_without_a_terminal(columns: int) -> None:
    status, output, errors = piped(columns=columns)
    lines = output.splitlines()
    assert (status, errors) == (0, "")
    assert [line for line in lines if line in set(NAMES)] == NAMES
    assert max(map(len, lines)) <= columns
    assert len(lines) > 5 * len(NAMES)


@pytest.mark.parametrize("columns", [40, 70, 99])
def test_a_narrow_terminal_gets_a_list_with_every_word(columns: int) -> None:
    lines = on_terminal("rollout", columns=columns)
    assert [line for line in lines if line in set(NAMES)] == [name for name in NAMES if name.startswith("rollout.")]
    assert max(map(len, lines)) <= columns
    assert not set(BORDERS) & set("".join(lines))
    (section,) = select("rollout")
    words = " ".join(" ".join(lines).split())
    for setting in section.settings:
        assert f"{setting.name} {setting.facts} {setting.effect}" in words


@pytest.mark.parametrize("columns", [100, 160])
def test_a_wide_terminal_gets_a_table_with_every_word(columns: int) -> None:
    lines = on_terminal("monitor", columns=columns)
    assert lines[0].startswith("[monitor] Say what is recorded while a run goes on.")
    assert max(map(len, lines)) <= columns
    rows = [re.split("[│┃]", line)[1:-1] for line in lines[1:] if line.startswith(("│", "┃"))]
    assert [cell.strip() for cell in rows[0]] == ["setting", "value", "what it does"]
    (section,) = select("monitor")
    names, facts, effects = (" ".join(" ".join(column).split()) for column in zip(*rows[1:], strict=True))
    assert names == " ".join(setting.name for setting in section.settings)
    assert facts == " ".join(setting.facts for setting in section.settings)
    assert all(setting.effect in effects for setting in section.settings)


def test_the_page_is_what_the_command_prints() -> None:
    status, output, errors = piped("--markdown")
    assert (status, errors) == (0, "")
    assert output == PAGE.read_text(), "run python -m megatron_rapo settings --markdown > docs/settings.md"


def test_the_page_has_every_setting_under_its_section() -> None:
    headings = re.findall(r"^##+ (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    expected = []
    for section in sections():
        expected += [section.name, *(f"`{setting.name}`" for setting in section.settings)]
    assert headings == expected


def test_the_page_links_to_pages_that_are_there() -> None:
    pages = set(re.findall(r"\]\(([\w./]+\.md)\)", PAGE.read_text()))
    assert {"checks.md", "rollout.md", "rewards.md", "data.md"} <= pages
    assert [page for page in pages if not (PAGE.parent / page).is_file()] == []


def test_markdown_shows_special_characters_as_they_are() -> None:
    text = markdown(select("reward.answer"))
    assert "boxed: the last \\\\boxed{...}." in text  # one backslash when it is shown
    assert "the last \\<NAME\\>...\\</NAME\\>." in text
    assert "not above `reward.budget_s`" in markdown(select("reward.timeout_s"))


def test_markdown_of_one_setting() -> None:
    assert markdown(select("algorithm.clip_high")).endswith(
        "### `algorithm.clip_high`\n"
        "\n"
        "number; unit: none; above 0, at most 1,000,000; default 0.2\n"
        "\n"
        "Clip the probability ratio from above at 1 + clip_high. A value above clip_low is what DAPO calls "
        "clip-higher.\n"
        "\n"
        "- **Also called**: clip-higher (DAPO), clip range, epsilon_high.\n"
    )


def test_an_unknown_section() -> None:
    assert piped("optimiser") == (
        2,
        "",
        "error: settings: optimiser: no such section; did you mean optimizer? known here: model, data, reward, batch, "
        "algorithm, parallel, rollout, reshard, memory, optimizer, precision, checkpoint, monitor, evaluation, run.\n",
    )


def test_a_reader_that_stops_early() -> None:
    """Stop reading as head does: no traceback, no failure."""
    process = started(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(timeout=HANG_S), errors) == (0, "")


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys\nfrom megatron_rapo.cli import main\nmain(['settings', 'run.seed'])\n"
        "print({'torch', 'transformers', 'megatron', 'vllm'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"
