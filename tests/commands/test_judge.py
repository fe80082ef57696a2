import json
import subprocess
import sys

import pytest

from megatron_rapo import cli
from megatron_rapo.types import Outcome
from megatron_rapo.verifier import VerifierPool

ROWS = [
    {"completion": r"\boxed{\frac{3}{6}}", "answer": "0.5", "id": 7},
    {"completion": r"\boxed{0.5}", "answer": 0.5},
    {"completion": r"\boxed{x+1}", "answer": "x+2"},
    {"completion": "It is 5.", "answer": "5"},
    {"completion": r"\boxed{?}", "answer": "5", "verdict": "correct"},
    {"completion": r"\boxed{9^{9^{9^{9}}}}", "answer": "5"},
]
VERDICTS = ["correct", "correct", "wrong", "no answer", "unparsable", "timeout"]


def file_of(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judged(capsys, *arguments):
    assert cli.main(["judge", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    return [json.loads(line) for line in printed.out.splitlines()], printed.err


def test_each_row_comes_back_with_its_verdict(tmp_path, capsys):
    path = file_of(tmp_path, ROWS)
    rows, said = judged(capsys, path, "--timeout-s", 1.5, "--workers", 1)
    assert rows == [{**row, "verdict": verdict} for row, verdict in zip(ROWS, VERDICTS, strict=True)]
    counts = {outcome.value.replace("_", " "): 0 for outcome in Outcome}
    for verdict in VERDICTS:
        counts[verdict] += 1
    assert said == "6 rows: " + ", ".join(f"{verdict} {count}" for verdict, count in counts.items()) + "\n"


def test_the_verdicts_are_those_of_training(tmp_path, capsys):
    """With another form of answer, to a file; several times as many rows as are judged at a time."""
    rows = [{"completion": f"so\n#### {n // 2 + n % 2}.", "answer": f"{n / 2:.1f}"} for n in range(2500)]
    out = tmp_path / "judged.jsonl"
    printed, _ = judged(capsys, file_of(tmp_path, rows), "--answer", "after:####", "--output", out)
    assert printed == []
    with VerifierPool(1, 30.0, answer="after:####") as pool:
        expected = pool.judge_all([(row["completion"], row["answer"]) for row in rows])
    found = [json.loads(line)["verdict"] for line in out.read_text().splitlines()]
    assert found == [verdict.outcome.value for verdict in expected] == ["correct", "wrong"] * 1250


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":2: not valid JSON ("),
        ("[1]", ":2: a list, not a JSON object"),
        ('{"completion": "5"}', ":2: no 'answer' (fields: 'completion'); write a completion and its answer."),
        ('{"answer": "5"}', ":2: no 'completion' (fields: 'answer'); write a completion and its answer."),
        ('{"completion": 5, "answer": "5"}', ":2: 'completion' is 5, not text; write a string there."),
        ('{"completion": "5", "answer": null}', ":2: 'answer' is None, not text or a number; write a string there."),
        (
            json.dumps({"completion": "5", "answer": "{" * 200_000}),
            ":2: 'answer' has 200,000 characters, and at most 10,000 are read; write the answer alone.",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, capsys, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    assert cli.main(["judge", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {path}{said}") and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--answer", "bax"], "reward.answer='bax': no such form of an answer; write boxed, after:MARK"),
        (["--workers", "0"], "--workers 0: nothing could be judged; pass 1 or more."),
        (["--workers", "9999"], "reward.workers=9999: not a number of processes; "),
        (["--timeout-s", "0"], "--timeout-s 0.0: input should be greater than 0; change the value."),
        (["--timeout-s", "nan"], "--timeout-s nan: input should be "),
        (["--output", "rows.jsonl"], "--output rows.jsonl: is the file that is judged; name another one."),
        (["--output", "no/such/folder.jsonl"], "--output no/such/folder.jsonl: "),
    ],
)
def test_wrong_arguments(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["judge", str(file_of(tmp_path, ROWS[:1])), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {said}") and printed.err.count("\n") == 1 and not printed.out


def test_no_such_file(tmp_path, capsys):
    assert cli.main(["judge", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none.jsonl: no such file; check the path.\n"


def test_an_interruption_ends_it_and_its_workers(tmp_path, monkeypatch):
    closed = []

    def interrupted(pool, items):
        raise KeyboardInterrupt

    monkeypatch.setattr(VerifierPool, "judge_all", interrupted)
    monkeypatch.setattr(VerifierPool, "close", lambda pool, close=VerifierPool.close: closed.append(close(pool)))
    assert cli.main(["judge", str(file_of(tmp_path, ROWS)), "--workers", "1"]) == 130
    assert closed == [None]


def test_whoever_reads_may_stop(tmp_path):
    path = file_of(tmp_path, [{**ROWS[1], "text": "x" * 100_000}] * 20)
    command = [sys.executable, "-m", "megatron_rapo", "judge", str(path), "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0 and said.startswith("") and "Error" not in said and "Exception" not in said
