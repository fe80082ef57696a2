"""What a terminal gets of an error, whatever stands in the files that it quotes."""

import pytest

from megatron_rapo.errors import InputError, print_error, printable, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, \u03c0 and \u4e2d", "plain, \u03c0 and \u4e2d"),
        ("two\nlines\tof it", "two\nlines\tof it"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("half \ud800", "half \\ud800"),
        ("file \udcff", "file \\udcff"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected
    assert printable(text).encode()


def test_shortened():
    assert shortened("a\nb") == "a b"
    assert shortened("x" * 80) == "x" * 80
    assert shortened("x" * 81) == f"{'x' * 80}... (81 characters)"


def test_an_error(capsys):
    print_error(InputError("a.json: \x1b[31mred\nb.json: \ud83d"), prefix="rank 3: ")
    assert capsys.readouterr().err == "rank 3: error: a.json: \\x1b[31mred\nb.json: \\ud83d\n"


def test_an_error_of_a_megabyte(capsys):
    print_error(InputError(f"a.json: {'x' * 10**6}"))
    assert capsys.readouterr().err == f"error: a.json: {'x' * 1985}... (1,000,015 characters)\n"
