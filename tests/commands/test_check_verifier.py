"""How a file of problems is read, what is measured on it and what is listed."""

import json
from pathlib import Path

import pytest

from megatron_rapo.cli import main
from megatron_rapo.commands.check_verifier import Row, others, read_rows, rewritten

ROWS = [
    {"id": "a", "solution": r"so it is $\boxed{2}$", "answer": "2.0"},
    {"id": "b", "solution": r"it is \framebox{\frac{3}{4}}", "answer": r"\frac{3}{4}"},
    {"id": "c", "solution": "3 * 400 = 1,200\n#### 1,200", "answer": 1200.0},
    {"id": "d", "solution": r"that is \boxed{\frac12}", "answer": "0.5"},
    {"id": "e", "solution": "it is plain", "answer": "7"},
    {"id": "f", "solution": r"\boxed{8}", "answer": "9"},
]


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(path)

    return write


def run(capsys, *arguments):
    status = main(["check-verifier", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_measured_by_hand(write, capsys):
    status, out, _ = run(capsys, write(*ROWS), "--answer", "answer", "--solution", "solution", "--json")
    found = json.loads(out)
    assert status == 1  # two of six disagree
    assert found["rows"] == 6
    assert {kind: count for kind, count in found["kinds"].items() if count} == {"integer": 3, "number": 3}
    agreement = found["agreement"]
    assert (agreement["cases"], agreement["share"], agreement["equal_texts"]) == (6, round(4 / 6, 5), 1)
    assert agreement["unexpected"] == [
        {"id": "e", "given": None, "reference": "7", "how": "", "outcome": "no_answer"},
        {"id": "f", "given": "8", "reference": "9", "how": "", "outcome": "wrong"},
    ]
    assert found["rewritten"]["unexpected"] == []
    assert (found["others"]["cases"], found["others"]["share"]) == (6 * 2, 1.0)


def test_without_solutions_in_words(write, capsys):
    rows = ({"n": 4.0, "id": 1}, {"n": "0.25"}, {"n": r"\frac{1}{4}"}, {"n": "4 "})
    status, out, _ = run(capsys, write(*rows), "--answer", "n", "--others", "1")
    lines = out.splitlines()
    assert lines[:2] == [
        "4 rows: 2 integer, 2 number",
        "solutions' final answers found right: not measured, no --solution was named",
    ]
    assert lines[2].startswith("answers found right when written otherwise: 100.00% of ")
    assert lines[3:] == [  # the integers are the same; the numbers are, too, and are listed for people to see
        "other rows' answers not found right: 0.00% of 2",
        r"  2: '\\frac{1}{4}' for '0.25': correct number of 3",
        r"  3: '0.25' for '\\frac{1}{4}': correct number of 2",
    ]
    assert status == 1


def test_formulas_of_the_problem(write, capsys):
    text = r"Compute $2 \cdot 3$, or \[4 + 1.\] [asy]draw($6$);[/asy] It costs \$5 and is $6$."
    status, out, _ = run(capsys, write({"p": text, "a": "6"}), "--answer", "a", "--problem", "p", "--json")
    found = json.loads(out)["restated"]
    assert (found["cases"], [case["given"] for case in found["unexpected"]]) == (3, ["6"])
    assert status == 0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "matrix"),
        (r"\text{(C)}", "words"),
        ("east", "words"),
        ("y = 2x", "equation"),
        (r"\left( 3, \frac{\pi}{2} \right)", "tuple or interval"),
        ("(0,9) \\cup (9,36)", "tuple or interval"),
        (r"\$32,\!348", "integer"),
        ("-1234", "integer"),
        ("1,-2", "list or set"),
        ("p - q", "expression"),
        ("6 - 5i", "number"),
        (r"3\sqrt{13}", "number"),
        (r"15\mbox{ cm}^2", "number"),
    ],
)
def test_kinds(answer, kind):
    assert Row(id="a", answer=answer, solved=None).kind == kind


def test_rewritings_of_an_integer():
    (row,) = [Row(id="a", answer="1234", solved=None)]
    assert {case.how: case.given for case in rewritten([row])} == {
        r"with \displaystyle": r"\displaystyle 1234",
        "in braces": "{1234}",
        r"within \( \)": r"\(1234\)",
        "with a full stop": "1234.",
        "as x = ...": "x = 1234",
        "with a unit": r"1234 \text{ units}",
        "in bold": r"\mathbf{1234}",
        "with a decimal": "1234.0",
        "in dollars": r"\$1234",
        "with 1,000": "1,234",
        r"with 1\,000": r"1\,234",
    }


def test_others_are_of_the_same_kind_and_look_different():
    answers = ["25", "025", "7", r"\frac{1}{2}", r"\dfrac{1}{2}", "x"]
    rows = [Row(id=str(i), answer=answer, solved=None) for i, answer in enumerate(answers)]
    assert {(case.given, case.reference) for case in others(rows, 5)} == {
        *(("7", "25"), ("7", "025"), ("25", "7"), ("025", "7"))
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["", " "], "{path}: has no rows; give a file with at least one."),
        (
            [{"answer": "1", "solution": "1"}, "{"],
            "{path}:2: not valid JSON (Expecting property name enclosed in double quotes, column ",
        ),
        (["[1]"], "{path}:1: a list, not a JSON object; write one object a line."),
        ([{"final": "1", "text": ""}], "{path}:1: --answer answer: no such column; name one of final, text."),
        ([{"answer": "1"}], "{path}:1: --solution solution: no such column; name one of answer."),
    ],
)
def test_files_that_cannot_be_used(write, capsys, lines, said):
    path = write(*lines)
    status, out, err = run(capsys, path, "--answer", "answer", "--solution", "solution")
    assert (status, out) == (2, "")
    assert err.startswith("error: " + said.format(path=path))


def test_a_file_that_is_not_there(capsys):
    status, _, err = run(capsys, "none.jsonl", "--answer", "a")
    assert status == 2 and err == "error: none.jsonl: no such file; check the path.\n"


def test_numbers_are_read_as_they_are_written(write):
    """As floats, the second would be 5e-05, and the third another integer."""
    numbers = ["1200.0", "0.00005", "12345678901234567890", "0.1000000000000000000001"]
    path = write(*(f'{{"answer": {number}}}' for number in numbers))
    rows = read_rows(Path(path), "answer", None, None)
    assert [row.answer for row in rows] == ["1200", "0.00005", "12345678901234567890", "0.1000000000000000000001"]
