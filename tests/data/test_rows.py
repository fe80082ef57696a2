"""Tests for JSON, CSV and what all formats share. test_problems.py tests JSONL and Parquet."""

import pytest

from megatron_rapo.data.rows import DataError, answer_text, read_rows, text_of


@pytest.fixture
def write(tmp_path):
    def write(name, text, **options):
        path = tmp_path / name
        path.write_text(text, **options)
        return path

    return write


def refusal(path, suffixes=None):
    with pytest.raises(DataError) as raised:
        list(read_rows(path, suffixes))
    return str(raised.value)


def test_json(write):
    path = write("a.json", '\ufeff[{"q": "½", "a": [1, {"b": 2}]},\n {"q": null, "a": 007}]'.replace("007", "7"))
    assert list(read_rows(path)) == [
        (f"{path}:row 0", {"q": "½", "a": [1, {"b": 2}]}),
        (f"{path}:row 1", {"q": None, "a": 7}),
    ]


def test_csv_values_are_text_as_it_is_written(write):
    path = write("a.csv", '\ufeffproblem,answer\r\n"two, ""words""\nand lines",007\r\n\r\nthree,\r\n', newline="")
    assert list(read_rows(path)) == [
        (f"{path}:3", {"problem": 'two, "words"\nand lines', "answer": "007"}),
        (f"{path}:5", {"problem": "three", "answer": ""}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "where", "message"),
    [
        (
            "a.json",
            '[{"a": 1},\n {"a": }]',
            "",
            "not valid JSON (Expecting value, line 2, column 8); fix it, or rename a file ",
        ),
        ("a.json", '{"a": [1]}', "", "a JSON object, not a list of JSON objects; write one."),
        ("a.json", "[{}, 3]", ":row 1", "3, not a JSON object; write a list of objects."),
        (
            "a.csv",
            "a,b\n1,2\n1,2,3\n",
            ":3",
            "3 values under 2 columns; put a value with a comma in it between double ",
        ),
        ("a.csv", 'a,b\n1,"2', ":2", "not valid CSV (unexpected end of data); fix that line."),
        ("a.csv", "a,a,b\n1,2,3\n", ":1", "two columns are called 'a'; rename one."),
        (
            "a.txt",
            "",
            "",
            "the suffix '.txt' is not supported; convert it to one of .jsonl, .ndjson, .parquet, .json, .c",
        ),
    ],
)
def test_what_is_broken_is_named(write, name, text, where, message):
    path = write(name, text)
    assert refusal(path).startswith(f"{path}{where}: {message}")


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_a_line_that_is_not_utf8_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"[\n\xe9")
    assert refusal(path) == f"{path}:2: not UTF-8; save the file as UTF-8."


def test_a_caller_may_take_fewer_formats(write):
    path = write("a.csv", "a\n1\n")
    assert refusal(path, (".parquet",)) == f"{path}: the suffix '.csv' is not supported; convert it to one of .parquet."


def test_answers_as_text():
    given = ("1.10", 70.0, 0.5, -3, 5e-05, "5e-05", "2e-10")
    assert [answer_text(value, "a", "x:1") for value in given] == [
        *("1.10", "70", "0.5", "-3", "0.00005", "0.00005", "2e-10")
    ]
    assert text_of("5e-05", "id", "x:1") == "5e-05"
    with pytest.raises(DataError, match=r"^x:1: 'a' is True, not text or a number; write a string there\.$"):
        answer_text(True, "a", "x:1")


def test_what_a_message_shows_is_short(write):
    path = write("a.json", f"[{'9' * 4000}]")
    assert refusal(path) == f"{path}:row 0: {'9' * 80}..., not a JSON object; write a list of objects."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"[{'9' * 5000}]", "has an integer of 5,000 digits, and 4,000 is the limit; fix it, or "),
        (r'[{"a": "1+1\ud800"}]', r"has half a surrogate pair (\ud800), which is not a character; fix it"),
        ("[" * 100_000, "is nested too deeply; fix it, or rename a file of one object per line to .jsonl."),
    ],
)
def test_json_that_no_program_should_take(write, text, reason):
    path = write("a.json", text)
    assert refusal(path).startswith(f"{path}: {reason}")


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.symlink_to("/proc/self/mem")
    assert refusal(path) == f"{path}: cannot be read (Input/output error); check its permissions."
