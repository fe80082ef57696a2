"""The command line: what is printed, and the exit status. tests/data has what it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_rapo.cli import main
from megatron_rapo.data import load_problems

TINY = Path(__file__).parents[2] / "examples/tiny/model"
ROWS = [{"text": f"How much is {n} + {n}?", "data": {"result": f"{n} and {n} make #{2 * n}"}} for n in range(8)]
SUMS = [
    ("How much is 1 + 1?", "2"),
    ("how much is $1+1$?", "2"),
    ("How much is 7 + 7?", ""),
    ("How much is 2 + 2?", "5"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files."""
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text(json.dumps(ROWS))
    Path("sums.csv").write_text("question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in SUMS))
    return tmp_path


def run(*arguments: str) -> int:
    return main(["prepare-data", *arguments])


FIELDS = ("--field", "problem=text", "--field", "answer=data.result", "--answer-after", "#", "--name", "doubles")


def test_what_is_left_out_and_what_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "rows.json", "train.parquet", *FIELDS) == 0
    assert run("prepare", "sums.csv", "sums.parquet", "--against", "train.parquet") == 0
    assert capsys.readouterr().out.splitlines() == [
        "train.parquet: 8 problems of 8 rows; details in train.manifest.json",
        "references that the verifier cannot parse: 0",
        "sums.parquet: 2 problems of 4 rows; details in sums.manifest.json",
        "left out, empty answer: 1",
        "  sums/2",
        "left out, duplicate: 1",
        "  sums/1 of sums/0",
        "references that the verifier cannot parse: 0",
        "pairs of the same problem with train.parquet (8): 2",
        "  sums/0 is doubles/1 (1.00)",
        "  sums/3 is doubles/2 (1.00)",
    ]
    assert [(problem.id, problem.answer) for problem in load_problems("train.parquet")][:3] == [
        ("doubles/0", "0"),
        ("doubles/1", "2"),
        ("doubles/2", "4"),
    ]
    arguments = json.loads(Path("train.manifest.json").read_text())["arguments"]
    assert arguments["field"] == {"problem": "text", "answer": "data.result"} and arguments["answer_after"] == "#"


def test_long_lists_are_cut_short(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "rows.json", "a.parquet", *FIELDS) == 0
    sums = ("sums.csv", "sums.parquet", "--against", "a.parquet", "--drop", "contaminated")
    assert run("prepare", *sums) == 2
    assert run("prepare", "rows.json", "b.parquet", *FIELDS, "--against", "a.parquet") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-3:] == [
        "  doubles/3 is doubles/3 (1.00)",
        "  doubles/4 is doubles/4 (1.00)",
        "  and 3 more",
    ]
    assert shown.err == (
        "error: sums.csv: no problem is left (1 empty answer, 1 duplicate, 2 contaminated); name another file.\n"
    )


def test_a_prompt_with_its_boundaries(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "sums.csv", "sums.parquet") == 0
    capsys.readouterr()
    assert run("show", "sums.parquet", "--template", "abel", "--id", "sums/3") == 0
    assert capsys.readouterr().out == (
        "sums/3 by abel, reference answer '5':\n"
        "▶Question:⏎\nHow much is 2 + 2?⏎\nAnswer:⏎\nLet's think step by step.⏎\n◀\n"
        "a completion stops at the model's end-of-sequence tokens, 'Question:', 'Answer:'\n"
    )
    assert run("show", "sums.parquet", "--template", "plain", "--model", str(TINY)) == 0
    assert capsys.readouterr().out == (
        "sums/0 by plain, reference answer '2':\n▶How much is 1 + 1?⏎\n◀\n"
        "19 tokens: 'H' 'o' 'w' 'Ġ' ... 'Ġ' '1' '?' 'Ċ'\n"
        "a completion stops at token '<|endoftext|>' (1)\n"
    )


def test_a_prompt_by_a_template_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('before = "Q: "\nafter = "\\nA:"\nstop = ["Q:"]\n')
    data = str(TINY.parent / "train.jsonl")
    assert run("show", data, "--template", "mine.toml", "--instruction", "Be brief.", "--model", str(TINY)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train-0 by mine.toml, reference answer ")
    assert lines[1].startswith("▶Q: ") and lines[-4:-2] == ["Be brief.⏎", "A:◀"]
    assert lines[-1] == "a completion stops at token '<|endoftext|>' (1); text 'Q:'"
    assert run("show", data, "--template", "mine.toml", "--system", "Be brief.") == 2
    assert capsys.readouterr().err.startswith("error: data.system='Be brief.': data.template=mine.toml has no place ")


def test_nothing_from_a_file_reaches_the_terminal_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"\x1b[2J{n}", "problem": "How\x1b]0;x\x07\u202e\tmuch?\r", "answer": "\x1b2"} for n in range(2)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("show", "a.jsonl", "--template", "plain") == 0
    assert run("prepare", "a.jsonl", "a.parquet", "--name", "a") == 0
    Path("b.jsonl").write_text(json.dumps({"\x1b[2J": "p"}))
    assert run("show", "b.jsonl", "--template", "plain") == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [
        r"\x1b[2J0 by plain, reference answer '\x1b2':",
        "▶How\\x1b]0;x\\x07\\u202e\tmuch?\\r⏎",
        "◀",
    ]
    assert "  a/\\x1b[2J1 of a/\\x1b[2J0" in out and "\x1b" not in out
    assert err == "error: b.jsonl:1: no column 'problem'; set data.problem_field to one of \\x1b[2J.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "sums.csv", "sums.parquet", "--field", "answer=result"), "sums.csv:2: no column 'result'; pass "),
        (
            ("prepare", "rows.json", "a.parquet", "--field", "level=x"),
            "rows.json:row 0: no column 'problem' or 'question'",
        ),
        (
            ("prepare", "math", "a.parquet"),
            "SOURCE=math: no file, and no data set with that name; names are simplerl-zer",
        ),
        (
            ("prepare", "gsm8k", "a.parquet", "--from", "."),
            "--from .: holds none of main/test-00000-of-00001.parquet, ",
        ),
        (
            ("show", "sums.csv", "--template", "r1"),
            "data.template='r1': no such template; use one of plain, qwen-boxed, ",
        ),
        (
            ("show", "no.parquet", "--template", "chat"),
            "--template chat: needs a tokenizer; pass --model FOLDER.",
        ),
        (("show", "sums.csv"), "sums.csv: the suffix '.csv' is not supported; convert it to one of .jsonl, "),
        (
            ("show", str(TINY.parent / "train.jsonl"), "--id", "x"),
            f"--id x: not in {TINY.parent}/train.jsonl, whose first",
        ),
    ],
)
def test_what_cannot_be_done(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert sorted(path.name for path in here.iterdir()) == ["rows.json", "sums.csv"]


def test_a_mapping_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("prepare", "rows.json", "a.parquet", "--field", "problem")
    assert "problem: not of the form FIELD=COLUMN; write for example problem=question" in capsys.readouterr().err
