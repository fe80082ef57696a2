from __future__ import annotations

import io
import re

import pytest

from megatron_rapo.monitor import Console, console

SCALARS = {
    "reward/mean": 0.41049,
    "reward/pass_rate": 0.375,
    "reward/format_rate": 0.9,
    "reward/no_answer": 0.0984,
    "rollout/truncated": 0.0312,
    "policy/kl": 0.00123456,
    "policy/entropy": 0.31234,
    "rollout/completion_tokens": 54.04,
    "throughput/tokens_per_s": 812.4,
    "seconds/rollout": 3.14,
    "seconds/verify": 0.26,
    "seconds/score": 0.41,
    "seconds/train": 1.9,
    "seconds/reshard": 0.05,
    "seconds/step": 5.6,
}


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def test_without_a_terminal_each_step_is_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(console.time, "strftime", lambda form: "21:12:10")
    stream = io.StringIO()
    with Console(30, stream=stream) as shown:
        shown.message("reading the model")
        shown.phase("rollout")
        shown.step(3, SCALARS)
        shown.step(4, {"reward/mean": float("nan"), "seconds/step": 5.6})
    assert stream.getvalue() == (
        "reading the model\n"
        "21:12:10 step 3/30 2:31 left reward 0.410 pass_rate 0.375 no_answer 0.098 truncated 0.031 kl 0.00123 "
        "entropy 0.312 tokens 54.0 tokens/s 812 "
        "rollout 3.1s verify 0.3s score 0.4s train 1.9s reshard 0.1s step 5.6s\n"
        "21:12:10 step 4/30 2:26 left reward nan step 5.6s\n"
    )


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Console(30, stream=stream) as shown:
        shown.step(3, {"reward/mean": 0.5})
    assert re.fullmatch(r"\d\d:\d\d:\d\d step 3/30 -:-- left reward 0\.500\n", stream.getvalue())


def drawn(stream: Terminal, start: str = "step 3/30") -> list[str]:
    """Return the lines of the display's last drawing."""
    return (start + without_escapes(stream.getvalue()).split(start)[-1]).splitlines()


def test_the_latest_steps_are_a_table() -> None:
    stream = Terminal()
    with Console(30, stream=stream, width=100) as shown:
        shown.step(2, SCALARS | {"reward/mean": 0.25, "policy/kl": 1e-7})
        shown.step(3, SCALARS)
        shown.phase("rollout")
    lines = drawn(stream)
    assert lines[0].endswith("2:31 left")  # 27 steps of 5.6 s
    assert lines[1].split() == ["done", "0:00"]
    assert [line.rstrip() for line in lines[2:5]] == [
        "step  reward  pass_rate  no_answer  truncated       kl  entropy  tokens  tokens/s",
        "   2   0.250      0.375      0.098      0.031    1e-07    0.312    54.0       812",
        "   3   0.410      0.375      0.098      0.031  0.00123    0.312    54.0       812",
    ]
    assert (
        " ".join(" ".join(lines[5:]).split()) == "rollout 3.1s verify 0.3s score 0.4s train 1.9s reshard 0.1s step 5.6s"
    )


@pytest.mark.parametrize(("width", "columns"), [(20, 1), (30, 2), (40, 3), (60, 5), (120, 8)])
def test_the_display_fits_the_width_and_cuts_nothing(width: int, columns: int) -> None:
    """Numbers without a column in the table are shown below it."""
    stream = Terminal()
    with Console(30, stream=stream, width=width) as shown:
        shown.step(3, SCALARS)
    lines = drawn(stream)
    assert all(len(line) <= width for line in lines) and not any("…" in line for line in lines)
    assert lines[0].split()[:2] == ["step", "3/30"] and lines[0].endswith("2:31 left")
    assert ("━" in lines[0]) == (width >= 30)
    labels, numbers = lines[2].split(), lines[3].split()
    assert len(labels) == len(numbers) == 1 + columns
    below = " ".join(" ".join(lines[4:]).split())
    pairs = " ".join(f"{label} {number}" for label, number in zip(labels[1:], numbers[1:], strict=True))
    assert f"{pairs} {below}" == (
        "reward 0.410 pass_rate 0.375 no_answer 0.098 truncated 0.031 kl 0.00123 entropy 0.312 "
        "tokens 54.0 tokens/s 812 rollout 3.1s verify 0.3s score 0.4s train 1.9s reshard 0.1s step 5.6s"
    )


@pytest.mark.parametrize(("height", "steps"), [(24, [5, 6, 7, 8, 9, 10]), (11, [8, 9, 10]), (5, [10])])
def test_a_low_terminal_has_fewer_steps(monkeypatch: pytest.MonkeyPatch, height: int, steps: list[int]) -> None:
    monkeypatch.setenv("LINES", str(height))
    stream = Terminal()
    with Console(30, stream=stream, width=80) as shown:
        for step in range(1, 11):
            shown.step(step, SCALARS)
    table = [line.split()[0] for line in drawn(stream, "step 10/30")[3:] if line.split()[1:3] == ["0.410", "0.375"]]
    assert [int(step) for step in table] == steps


def test_without_colour_the_display_is_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def show() -> str:
        stream = Terminal()
        with Console(30, stream=stream, width=80) as shown:
            shown.step(3, SCALARS)
        return stream.getvalue()

    colours = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    coloured = show()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = show()
    assert colours.search(coloured) and not colours.search(plain)
    rest_of_bar = str.maketrans("━╺╸", "   ")  # is only there in another colour
    assert without_escapes(plain).translate(rest_of_bar) == without_escapes(coloured).translate(rest_of_bar)


def test_the_remaining_time_is_the_mean_of_recent_steps_times_those_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown = Console(1000, stream=Terminal(), width=60)
    shown.step(401, {})  # resumed: what went before says nothing about the speed
    assert shown._remaining() == "-:-- left"
    now[0] += 10
    shown.step(402, {})
    now[0] += 20
    shown.step(403, {})
    assert shown._remaining() == "2:29:15 left"  # 597 steps of 15 s


def test_a_terminal_is_left_as_it_was_also_after_an_interrupt() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Console(30, stream=stream, width=60) as shown:
        shown.step(1, SCALARS)
        raise KeyboardInterrupt
    text = stream.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor was shown after it was hidden
    assert "stopped 0:00" in without_escapes(text)
    shown.message("after")
    assert without_escapes(stream.getvalue()).endswith("after\n")


def test_the_cursor_stays_visible_while_the_display_lives() -> None:
    stream = Terminal()
    with Console(30, stream=stream, width=60):
        text = stream.getvalue()
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_messages_are_literal_and_cannot_steer_the_terminal() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with Console(0, stream=stream, width=60) as shown:
            shown.message("[bold]a[/bold] \x1b[2J\x07\\boxed{1}\tb\n:smile: 100")
    assert plain.getvalue() == "[bold]a[/bold] [2J\\boxed{1}\tb\n:smile: 100\n"
    assert "[bold]a[/bold] [2J\\boxed{1}" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue() and "\x07" not in terminal.getvalue()


TABLE = ("held-out problems", ["", "before", "after"], [["pass@1", "0.300", "0.550"], ["pass@16", "0.9", "0.95"]])


def test_a_plain_table_is_aligned() -> None:
    stream = io.StringIO()
    with Console(0, stream=stream) as shown:
        shown.table(*TABLE)
    assert stream.getvalue() == (
        "held-out problems\n         before  after\npass@1    0.300  0.550\npass@16     0.9   0.95\n"
    )


def test_a_table_on_a_terminal_stays_after_the_display() -> None:
    stream = Terminal()
    with Console(30, stream=stream, width=60) as shown:
        shown.step(30, SCALARS)
        shown.table(*TABLE)
    text = without_escapes(stream.getvalue())
    assert re.search(r"pass@1 +│ +0\.300 +│ +0\.550", text)
    assert text.index("0:00 left") < text.index("held-out problems")
    assert text.rstrip().endswith("┘")


def test_a_table_does_not_steer_the_terminal() -> None:
    stream = io.StringIO()
    with Console(3, stream=stream) as shown:
        shown.table("of \x1b[31mmine", ["", "sc\x1bore"], [["al\x1b[2Jgebra", "1\x9b"]])
    assert stream.getvalue() == "of [31mmine\n            score\nal[2Jgebra      1\n"
