r"""Measure how far the verifier can be trusted on a data set: that it takes right answers and no wrong ones.

    megatron-rapo check-verifier FILE.jsonl --answer FIELD
    megatron-rapo check-verifier FILE.jsonl --answer FIELD --solution FIELD

An answer is the text of its column, or the end of a solution in that column: the line after ####, or the content of the
last \boxed, \fbox or \framebox. The verifier's own processes measure four things:

    agreement   each solution's final answer against the row's answer
                (with --solution)
    rewritten   each row's answer, written in other ways, against itself
    others      each row's answer against the answers of N other rows of
                the same kind, which are wrong
    restated    each formula in a row's problem, which should be wrong
                (with --problem)

All unexpected verdicts are listed. The exit status is 1 if less than 99 % agree, or if more than 0.5 % of the other
rows' answers pass.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_rapo.commands.arguments import command_parser, whole_number
from megatron_rapo.data import rows as data
from megatron_rapo.errors import InputError, printable
from megatron_rapo.types import Outcome
from megatron_rapo.verifier import VerifierPool, final_answer

LEAST_AGREEMENT, LEAST_REJECTED = 0.99, 0.995

KINDS = {  # of an answer: the first whose pattern is found in it
    "matrix": r"\\begin",
    "words": r"^\W*(\\(text|mbox)\w*\s*\{[^}]*\}|[a-zA-Z]{2,})\W*$",
    "equation": r"=",
    "tuple or interval": r"^(\\left)?\s*[(\[].*,.*[)\]]$",
    "integer": r"^-?(\\\$)?\d{1,3}((,|\\!|,\\!\s*|\{,\})\d{3})*$|^-?(\\\$)?\d+$",
    "list or set": r",",
    "expression": r"(?<![\\a-zA-Z])(?!i\b)[a-zA-Z](?![a-zA-Z])",  # a letter by itself, a variable
    "number": r"",
}
FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\[(.*?)\\\]|\\\((.*?)\\\)", re.DOTALL)
PICTURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
NUMBERS = ("integer", "number")
REWRITINGS: dict[str, Callable[[str], str]] = {
    r"with \displaystyle": lambda text: rf"\displaystyle {text}",  # never an equal text: all of these are parsed
    "in braces": lambda text: f"{{{text}}}",
    r"\dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    r"without \left, \right": lambda text: text.replace(r"\left", "").replace(r"\right", ""),
    r"within \( \)": lambda text: rf"\({text}\)",
    "with a full stop": lambda text: text + ".",
}
REWRITINGS_OF_NUMBERS: dict[str, Callable[[str], str]] = {
    "as x = ...": lambda text: f"x = {text}",
    "with a unit": lambda text: rf"{text} \text{{ units}}",
    "in bold": lambda text: rf"\mathbf{{{text}}}",
}
REWRITINGS_OF_INTEGERS: dict[str, Callable[[str], str]] = {
    "with a decimal": lambda text: f"{text}.0",
    "in dollars": lambda text: rf"\${text}",
    "with 1,000": lambda text: f"{int(text):,}",
    r"with 1\,000": lambda text: f"{int(text):,}".replace(",", r"\,"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    id: str
    answer: str
    solved: str | None  # the solution's final answer, where it marks one
    problem: str = ""  # its text

    @property
    def kind(self) -> str:
        return next(name for name, pattern in KINDS.items() if re.search(pattern, self.answer, re.DOTALL))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer for the verifier."""

    id: str
    given: str | None
    reference: str
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class Decided(Case):
    outcome: str


def read_rows(path: Path, answer_field: str, solution_field: str | None, problem_field: str | None) -> list[Row]:
    """Return the rows of a JSONL file. Raises InputError, with the line."""
    fields = {"answer": answer_field, "solution": solution_field, "problem": problem_field}
    named = {name: field for name, field in fields.items() if field is not None}
    read = data.read_rows(path, (".jsonl", ".ndjson"))
    rows = [_row(row, place, number, named) for number, (place, row) in enumerate(read, start=1)]
    if not rows:
        raise InputError(f"{path}: has no rows; give a file with at least one.")
    return rows


def _row(row: Mapping[str, Any], place: str, number: int, fields: Mapping[str, str]) -> Row:
    for option, field in fields.items():
        if field not in row:
            raise InputError(f"{place}: --{option} {field}: no such column; name one of {', '.join(row)}.")
    text = data.answer_text(row[fields["answer"]], fields["answer"], place)
    others = {name: data.text_of(row[field], field, place) for name, field in fields.items() if name != "answer"}
    found = final_answer(text)
    return Row(
        id=str(row.get("unique_id", row.get("id", number))),
        answer=(text if found is None else found).strip(),
        solved=final_answer(others["solution"]) if "solution" in others else None,
        problem=others.get("problem", ""),
    )


def rewritten(rows: Sequence[Row]) -> Iterator[Case]:
    for row in rows:
        ways = dict(REWRITINGS)
        if row.kind in NUMBERS:
            ways |= REWRITINGS_OF_NUMBERS
        if re.fullmatch(r"-?\d+", row.answer):
            ways |= REWRITINGS_OF_INTEGERS
        for how, rewrite in ways.items():
            if (text := rewrite(row.answer)) != row.answer:
                yield Case(id=row.id, given=text, reference=row.answer, how=how)


def restated(rows: Sequence[Row]) -> Iterator[Case]:
    """Yield the formulas of each problem's text without pictures, each once, without punctuation after them."""
    for row in rows:
        text = PICTURE.sub("", row.problem).replace(r"\$", "")
        formulas = (next(filter(None, match), "").strip().rstrip(".,").strip() for match in FORMULA.findall(text))
        for formula in dict.fromkeys(formulas):
            if formula:
                yield Case(id=row.id, given=formula, reference=row.answer, how="formula of the problem")


def others(rows: Sequence[Row], count: int) -> Iterator[Case]:
    """Yield answers of other rows of the same kind, unless they differ only by blanks, \\left or leading zeros."""
    rng = random.Random(0)
    of_kind: dict[str, list[Row]] = {}
    for row in rows:
        of_kind.setdefault(row.kind, []).append(row)
    for row in rows:
        different = [other for other in of_kind[row.kind] if _bare(other.answer) != _bare(row.answer)]
        for other in rng.sample(different, min(count, len(different))):
            yield Case(id=row.id, given=other.answer, reference=row.answer, how=f"{row.kind} of {other.id}")


def _bare(text: str) -> str:
    return re.sub(r"\s|\\left|\\right|\\!|\\\$|^0+(?=\d)", "", text.replace("dfrac", "frac"))


def decide(cases: Sequence[Case], pool: VerifierPool) -> list[Decided]:
    boxes = [("" if case.given is None else rf"\boxed{{{case.given}}}", case.reference) for case in cases]
    verdicts = pool.judge_all(boxes)
    return [
        Decided(**asdict(case), outcome=verdict.outcome.value) for case, verdict in zip(cases, verdicts, strict=True)
    ]


def summary(decided: Sequence[Decided], expected: Callable[[str], bool]) -> dict[str, Any]:
    """Return the number of cases, the share that came out as expected, and the others."""
    unexpected = [case for case in decided if not expected(case.outcome)]
    share = round(1 - len(unexpected) / len(decided), 5) if decided else None
    return {"cases": len(decided), "share": share, "unexpected": [asdict(case) for case in unexpected]}


def check(rows: Sequence[Row], *, with_solutions: bool, num_others: int) -> dict[str, Any]:
    """Return the measurements; `agreement` is None without solutions, `restated` without problems."""
    correct = Outcome.CORRECT.value
    with VerifierPool(2, 5.0) as pool:
        solved = [Case(id=row.id, given=row.solved, reference=row.answer) for row in rows]
        agreement = summary(decide(solved, pool), lambda o: o == correct) if with_solutions else None
        same = summary(decide(list(rewritten(rows)), pool), lambda o: o == correct)
        wrong = summary(decide(list(others(rows, num_others)), pool), lambda o: o != correct)
        copied = summary(decide(list(restated(rows)), pool), lambda o: o != correct) if rows[0].problem else None
    if agreement:
        agreement["equal_texts"] = sum(
            row.solved is not None and _bare(row.solved) == _bare(row.answer) for row in rows
        )
    kinds = {kind: sum(row.kind == kind for row in rows) for kind in KINDS}
    return {
        "rows": len(rows),
        "kinds": kinds,
        "agreement": agreement,
        "rewritten": same,
        "others": wrong,
        "restated": copied,
    }


def show(result: Mapping[str, Any]) -> None:
    print(f"{result['rows']} rows: " + ", ".join(f"{n} {kind}" for kind, n in result["kinds"].items() if n))
    said = {
        "agreement": "solutions' final answers found right",
        "rewritten": "answers found right when written otherwise",
        "others": "other rows' answers not found right",
        "restated": "formulas of the problems not found right",
    }
    for name, words in said.items():
        if (found := result[name]) is None:
            if name == "agreement":
                print(f"{words}: not measured, no --solution was named")
            continue
        share = "-" if found["share"] is None else f"{found['share']:.2%}"
        equal = f", {found['equal_texts']} of them by equal texts" if "equal_texts" in found else ""
        print(f"{words}: {share} of {found['cases']}{equal}")
        for case in found["unexpected"]:
            place, outcome = printable(case["id"]), f"{case['outcome']} {case['how']}"
            print(f"  {place}: {case['given']!r} for {case['reference']!r}: {outcome}")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. Raises InputError."""
    parser = command_parser("check-verifier", __doc__ or "")
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--answer", required=True, metavar="FIELD", help="column of the reference answer")
    parser.add_argument("--solution", metavar="FIELD", help="column of a written-out solution; may be the same")
    parser.add_argument(
        "--others", type=whole_number(0, 10**6), default=5, metavar="N", help="other rows' answers for each row (5)"
    )
    parser.add_argument("--problem", metavar="FIELD", help="column of the problem's text")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    rows = read_rows(options.file, options.answer, options.solution, options.problem)
    result = check(rows, with_solutions=options.solution is not None, num_others=options.others)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    agreement, wrong = result["agreement"], result["others"]
    enough = agreement is None or agreement["share"] >= LEAST_AGREEMENT
    return int(not (enough and (wrong["share"] is None or wrong["share"] >= LEAST_REJECTED)))
