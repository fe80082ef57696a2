import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import megatron_rapo
from megatron_rapo.data import DataError, load_problems
from megatron_rapo.types import Problem

ROW = {"problem": "1 + 1?", "answer": "2"}


def refusal(path, **fields):
    with pytest.raises(DataError) as raised:
        load_problems(path, **fields)
    return str(raised.value)


def test_jsonl(write_jsonl):
    path = write_jsonl(
        {"problem": "Find $\\{x\\}$.", "answer": "\\frac{1}{2}", "level": 3, "tags": ["a"]},
        {"problem": "½?", "answer": "0.5", "source": None},
    )
    assert load_problems(path) == [
        Problem(id="train-0", text="Find $\\{x\\}$.", answer="\\frac{1}{2}", extra={"level": 3, "tags": ["a"]}),
        Problem(id="train-1", text="½?", answer="0.5", extra={"source": None}),
    ]


def test_parquet(tmp_path):
    path = tmp_path / "test.parquet"
    table = {"question": ["a", "b"], "result": ["1", "2"], "id": ["x", "y"], "steps": [[1, 2], [3]]}
    pq.write_table(pa.table(table), path)
    assert load_problems(path, problem_field="question", answer_field="result") == [
        Problem(id="x", text="a", answer="1", extra={"steps": [1, 2]}),
        Problem(id="y", text="b", answer="2", extra={"steps": [3]}),
    ]


def test_answers_are_what_the_file_says(write_jsonl):
    answers = ["42", "2020-01-01", "007", "1.10", "12345678901234567890123", 12345678901234567890123, -3, 70.0, 0.5]
    problems = load_problems(write_jsonl(*({"problem": "p", "answer": answer} for answer in answers)))
    assert [problem.answer for problem in problems] == [
        "42",
        "2020-01-01",
        "007",
        "1.10",
        "12345678901234567890123",
        "12345678901234567890123",
        "-3",
        "70",
        "0.5",
    ]


def test_numbers_keep_the_digits_that_they_are_written_with(write_jsonl):
    """Read numbers as text: as floats, those below 1e-4 would get an exponent that no decimal answer has."""
    numbers = ["0.00005", "1e-3", "5.0", "1.10", "0.1000000000000000055511151231257827", "1e23"]
    rows = [f'{{"problem": "p", "answer": {number}, "weight": {number}}}' for number in numbers]
    problems = load_problems(write_jsonl(*rows))
    assert [problem.answer for problem in problems] == [
        *("0.00005", "0.001", "5", "1.10", "0.1000000000000000055511151231257827", "1" + "0" * 23)
    ]
    weights = [problem.extra["weight"] for problem in problems]
    assert weights == [float(number) for number in numbers] and {type(weight) for weight in weights} == {float}


def test_ids(write_jsonl):
    rows = [{"id": 60, "unique_id": "u"}, {"unique_id": "u"}, {"id": None}, {"id": 0}, {}]
    problems = load_problems(write_jsonl(*(ROW | row for row in rows), name="aime.ndjson"))
    assert [problem.id for problem in problems] == ["60", "u", "aime-2", "0", "aime-4"]
    assert [problem.extra for problem in problems] == [{"unique_id": "u"}, {}, {"id": None}, {}, {}]


def test_blank_lines_are_skipped_and_counted(write_jsonl):
    row = json.dumps(ROW)
    assert [p.id for p in load_problems(write_jsonl("", row, "  ", row))] == ["train-0", "train-1"]
    path = write_jsonl("", row, "\r", "{}")
    assert refusal(path).startswith(f"{path}:4: ")


def test_byte_order_mark_and_unusual_line_separators(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW | {"problem": "a\u2028b\x85"}, ensure_ascii=False).encode())
    assert [problem.text for problem in load_problems(path)] == ["a\u2028b\x85"]


def test_paths_are_no_patterns(tmp_path):
    folder = tmp_path / "run[1] *"
    folder.mkdir()
    (folder / "a?.jsonl").write_text(json.dumps(ROW))
    assert [problem.id for problem in load_problems(folder / "a?.jsonl")] == ["a?-0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "p", "answer": "2"', "not valid JSON (Expecting ',' delimiter, column 31); write one object a "),
        ("[1, 2]", "a list, not a JSON object; write one object a line."),
        ('{"problem": "p", "result": "2"}', "no column 'answer'; set data.answer_field to one of problem, result."),
        ('{"answer": "2"}', "no column 'problem'; set data.problem_field to one of answer."),
        ("{}", "no column 'problem'; set data.problem_field to one of (none)."),
        ('{"problem": "p", "answer": null}', "'answer' is null; fill it in or leave the row out."),
        ('{"problem": null, "answer": "2"}', "'problem' is null; fill it in or leave the row out."),
        ('{"problem": "p", "answer": " "}', "'answer' is empty; fill it in or leave the row out."),
        ('{"problem": 3, "answer": "2"}', "'problem' is 3, not text; write a string there."),
        ('{"problem": "p", "answer": [1]}', "'answer' is a list, not text or a number; write a string there."),
        ('{"problem": "p", "answer": {"a": 1}}', "'answer' is a JSON object, not text or a number; write a string th"),
        ('{"problem": "p", "answer": true}', "'answer' is True, not text or a number; write a string there."),
        ('{"problem": "p", "answer": NaN}', "'answer' is nan, not text or a number; write a string there."),
        ('{"problem": "p", "answer": 1e4000}', "'answer' is 1e4000, not text or a number; write a string there."),
        (f'{{"problem": "p", "answer": {"9" * 5000}}}', "has an integer of 5,000 digits, and 4,000 is the limit; "),
        ('{"problem": "1+1\\ud800", "answer": "2"}', "has half a surrogate pair (\\ud800), which is not a character; "),
        ('{"problem": "p", "answer": "2", "x": ' + "[" * 100_000, "is nested too deeply; write one object a line."),
    ],
)
def test_a_bad_line_is_named(write_jsonl, line, message):
    path = write_jsonl(ROW, ROW, line, ROW)
    assert refusal(path).startswith(f"{path}:3: {message}")


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"problem": "\xe9"}\n')
    assert refusal(path) == f"{path}:2: not UTF-8; save the file as UTF-8."


def test_a_bad_parquet_row_is_named(tmp_path):
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"problem": ["a", "b"], "answer": [1, None]}), path)
    assert refusal(path) == f"{path}:row 1: 'answer' is null; fill it in or leave the row out."
    assert refusal(path, answer_field="solution") == (
        f"{path}:row 0: no column 'solution'; set data.answer_field to one of problem, answer."
    )


def test_files_without_problems(tmp_path):
    missing, jsonl, parquet = tmp_path / "no.jsonl", tmp_path / "empty.jsonl", tmp_path / "empty.parquet"
    jsonl.write_text("\n")
    pq.write_table(pa.table({"problem": pa.array([], pa.string())}), parquet)
    assert refusal(missing) == f"{missing}: no such file; check the path."
    assert refusal(tmp_path) == f"{tmp_path}: no such file; check the path."
    for path in (jsonl, parquet):
        assert refusal(path) == f"{path}: the data set is empty; name a file with at least one problem."


def test_files_of_another_format(tmp_path, capfd):
    csv, parquet = tmp_path / "train.csv", tmp_path / "train.parquet"
    csv.write_text("problem,answer\n")
    parquet.write_text("problem,answer\n")
    assert refusal(csv) == (
        f"{csv}: the suffix '.csv' is not supported; convert it to one of .jsonl, .ndjson, .parquet."
    )
    assert refusal(parquet) == (
        f"{parquet}: not a Parquet file that can be read, or damaged (Parquet magic bytes not found in footer. Either "
        "the file is corrupted or this is not a parquet file.); write or copy it again."
    )
    assert capfd.readouterr() == ("", "")


def test_reads_without_a_network_a_cache_or_a_word(tmp_path):
    """Runs in a separate process, because the library reads its variables on import."""
    home = tmp_path / "home"
    home.mkdir()
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(ROW))
    script = (
        "import socket, sys\n"
        "def refuse(*args, **options): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"sys.path.insert(0, {str(Path(megatron_rapo.__path__[0]).parent)!r})\n"
        "from megatron_rapo.data import load_problems\n"
        f"assert len(load_problems({str(path)!r})) == 1\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert [str(file) for file in home.rglob("*") if file.is_file()] == []


def test_a_reference_that_the_verifier_would_not_read_is_refused(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"problem": "1+1=", "answer": "{" * 10_001}) + "\n")
    with pytest.raises(DataError) as refused:
        load_problems(path)
    assert str(refused.value) == (
        f"{path}:1: 'answer' has 10,001 characters, and the verifier reads at most 10,000; write the answer alone."
    )
