"""Tests from rows to the prepared file and its manifest. The parts have separate tests."""

import hashlib
import json
import resource
import signal
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rapo import __version__
from megatron_rapo.data import DataError, load_problems
from megatron_rapo.data.preparation import Request, prepare, without_doubles
from megatron_rapo.data.prepared_file import manifest_path
from megatron_rapo.data.records import Record
from megatron_rapo.types import Problem

SHARED = Path(__file__).parents[3] / "shared/data"
TRAINS = (
    "Two trains leave a station at noon, one at $60$ km/h, one at $80$ km/h. How far apart are they at $3$ o'clock?"
)
ROWS = [
    {"question": TRAINS, "answer": "60", "level": 3},
    {"question": "Halve  $\\dfrac{2}{3}$.", "answer": "\\frac{1}{3}", "subject": "Prealgebra", "solution": "so"},
    {"question": " ", "answer": "1"},
    {"question": "Solve $x = 1$.", "answer": None},
    {"question": "halve $\\frac{2}{3}$.\n", "answer": "$\\frac{1}{3}$"},
    {"question": "Halve $\\frac 2 3$.", "answer": "0"},
    {"question": "Halve $\\frac{2}{3}$.", "answer": "\\frac{2}{6}"},
    {"question": "What is it?", "answer": "???"},
]
KNOWN = [
    {"problem": TRAINS.replace("$", ""), "answer": "60", "id": "e/1"},
    {"problem": "What is 1 + 1?", "answer": "2"},
    {"problem": TRAINS.replace("at $3$ o'clock", "when one has gone $100$ km farther"), "answer": "100", "id": "e/3"},
]


@pytest.fixture
def files(tmp_path, write_jsonl, monkeypatch):
    """Write a data set, and a file to compare it with, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(*ROWS, name="raw.jsonl")
    write_jsonl(*KNOWN, name="known.jsonl")


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def request(output="out/made.parquet", **changes):
    return Request(**{"source": "raw.jsonl", "output": Path(output), "against": (Path("known.jsonl"),), **changes})


def refusal(asked):
    with pytest.raises(DataError) as raised:
        prepare(asked)
    return str(raised.value)


def test_what_is_written(files):
    manifest = prepare(request(name="mine", licence="CC0", overlap=0.8))
    schema = pq.read_schema("out/made.parquet")
    assert schema.names == ["id", "problem", "answer", "source", "subject", "level", "solution"]
    assert {field.type for field in schema} == {pa.string()}
    assert [field.nullable for field in schema] == [False] * 4 + [True] * 3
    nothing = {"source": "mine", "subject": None, "level": None, "solution": None}
    assert load_problems("out/made.parquet") == [
        Problem(id="mine/0", text=TRAINS, answer="60", extra={**nothing, "level": "3"}),
        Problem(
            id="mine/1",
            text="Halve  $\\dfrac{2}{3}$.",
            answer="\\frac{1}{3}",
            extra={**nothing, "subject": "Prealgebra", "solution": "so"},
        ),
        Problem(id="mine/5", text="Halve $\\frac 2 3$.", answer="0", extra=nothing),
        Problem(id="mine/7", text="What is it?", answer="???", extra=nothing),
    ]
    assert json.loads(Path("out/made.manifest.json").read_text()) == manifest
    (below,) = manifest["contamination"]["against"][0].pop("below")
    assert (below["id"], below["with"]) == ("mine/0", "e/3") and 0.4 < below["overlap"] < 0.8
    assert manifest == {
        "source": {"name": "mine", "licence": "CC0", "file": "raw.jsonl", "sha256": digest("raw.jsonl")},
        "rows": {"read": 8, "written": 4, "dropped": 4},
        "dropped": {
            "empty problem": [{"id": "mine/2"}],
            "empty answer": [{"id": "mine/3"}],
            "duplicate": [{"id": "mine/4", "of": "mine/1"}],
            "duplicate with another answer": [{"id": "mine/6", "of": "mine/1"}],
        },
        "unparsable": [{"id": "mine/7", "answer": "???", "outcome": "unparsable"}],
        "contamination": {
            "ngram": 13,
            "overlap": 0.8,
            "against": [
                {
                    "file": "known.jsonl",
                    "sha256": digest("known.jsonl"),
                    "problems": 3,
                    "contaminated": [{"id": "mine/0", "with": "e/1", "overlap": 1.0}],
                }
            ],
        },
        "arguments": {
            "source": "raw.jsonl",
            "from": None,
            "revision": "main",
            "field": {},
            "answer_after": None,
            "name": "mine",
            "licence": "CC0",
            "against": ["known.jsonl"],
            "overlap": 0.8,
            "drop": [],
        },
        "versions": {
            "megatron-rapo": __version__,
            "math-verify": version("math-verify"),
            "pyarrow": version("pyarrow"),
        },
        "sha256": digest("out/made.parquet"),
    }


def test_what_is_only_reported_can_be_left_out(files):
    manifest = prepare(request(drop=("contaminated", "unparsable")))
    assert [problem.id for problem in load_problems("out/made.parquet")] == ["raw/1", "raw/5"]
    assert manifest["dropped"]["contaminated"] == [{"id": "raw/0"}]
    assert manifest["dropped"]["unparsable reference"] == [{"id": "raw/7"}]
    assert manifest["rows"] == {"read": 8, "written": 2, "dropped": 6}
    assert manifest["arguments"]["drop"] == ["contaminated", "unparsable"]


def test_the_same_input_gives_the_same_bytes(files, write_jsonl):
    write_jsonl(*ROWS[:3], name="raw.jsonl")
    for output in ("a.parquet", "b.parquet"):
        prepare(request(output))
    assert Path("a.parquet").read_bytes() == Path("b.parquet").read_bytes()
    assert Path("a.manifest.json").read_bytes() == Path("b.manifest.json").read_bytes()


def test_nothing_is_replaced_unless_asked(files, write_jsonl):
    write_jsonl(ROWS[0], name="raw.jsonl")
    prepare(request())
    before = digest("out/made.parquet")
    write_jsonl({"question": "Another?", "answer": 1}, name="raw.jsonl")
    assert refusal(request()) == (
        "OUTPUT=out/made.parquet: out/made.parquet exists already; name another file, or pass --overwrite."
    )
    assert digest("out/made.parquet") == before
    assert prepare(request(overwrite=True))["sha256"] == digest("out/made.parquet") != before
    Path("out/made.parquet").unlink()
    assert refusal(request()).startswith("OUTPUT=out/made.parquet: out/made.manifest.json exists already; ")


@contextmanager
def files_limited_to(size):
    """Limit the size of this process's files, in bytes. A write beyond it fails, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_does_not_take_it_leaves_what_was_there(files, write_jsonl):
    write_jsonl(*[ROWS[0]] * 200, name="raw.jsonl")
    prepare(request())
    there = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    size, larger = len(there["made.parquet"]), len(there["made.manifest.json"])
    assert size + 100 < larger
    for limit in (100, size + 100):  # in the middle of the first file, of the second
        with files_limited_to(limit):
            assert refusal(request(overwrite=True)).startswith("OUTPUT=out/made.parquet: [Errno 27] ")
        assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == there


def test_a_file_of_other_length_is_not_the_data_set(files, write_jsonl):
    write_jsonl(*({"problem": f"{n}?", "answer": n} for n in range(30)), name="test.jsonl")
    here = {"source": "aime25", "original": Path("."), "against": ()}
    manifest = prepare(request(**here))
    assert manifest["rows"]["written"] == 30
    assert manifest["source"] == {
        "name": "aime25",
        "title": "AIME 2025 I and II",
        "licence": "none stated (hub); the problems are the Mathematical Association of America's",
        "file": "test.jsonl",
        "sha256": digest("test.jsonl"),
    }
    write_jsonl(*ROWS, name="test.jsonl")
    assert refusal(request("other.parquet", **here)) == (
        "test.jsonl: has 8 rows, but aime25 has 30; use the original file, or pass the path of this file as SOURCE."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": "aime26"},
            "SOURCE=aime26: no file, and no data set with that name; names are simplerl-zero-8k, math",
        ),
        ({"output": "out.jsonl"}, "OUTPUT=out.jsonl: prepared files are Parquet; name one that ends in .parquet."),
        (
            {"output": "raw.jsonl/a.parquet"},
            "OUTPUT=raw.jsonl/a.parquet: [Errno 17] File exists: 'raw.jsonl'; check the ",
        ),
        (
            {"fields": {"text": "q"}},
            "--field text=...: no such field; fields are problem, answer, id, subject, level, sol",
        ),
        (
            {"fields": {"level": "grade"}},
            "raw.jsonl:1: no column 'grade'; pass --field level=COLUMN with one of question, ",
        ),
        ({"overlap": 0.0}, "--overlap 0.0: not a share; pass a number above 0 and at most 1."),
        (
            {"drop": ("contaminated",), "against": ()},
            "--drop contaminated: nothing to compare with; pass --against FILE.",
        ),
        ({"against": (Path("out/made.parquet"),)}, "--against out/made.parquet: is OUTPUT itself; leave it out."),
        (
            {"against": (Path("raw.jsonl"),)},
            "--against raw.jsonl:1: no text in a column 'problem'; prepare that file first.",
        ),
        ({"against": (Path("no.parquet"),)}, "no.parquet: no such file; check the path."),
        ({"source": "aime24", "name": "x"}, "--name, --licence: those of aime24 are known; leave them out."),
        ({"original": Path("x")}, "--from x: raw.jsonl is itself a file; leave one of them out."),
        (
            {"answer_after": "####"},
            "raw.jsonl: no problem is left (1 empty problem, 7 empty answer); name another file.",
        ),
    ],
)
def test_refusals(files, changes, message):
    assert refusal(request(**changes)).startswith(message)
    assert not Path("out/made.parquet").exists() and not Path("out/made.manifest.json").exists()


def test_a_file_without_problems(files, write_jsonl):
    write_jsonl(name="raw.jsonl")
    assert refusal(request()) == "raw.jsonl: no problem is left (it has no rows); name another file."


def test_doubles_are_those_of_the_first():
    def record(number, problem, answer):
        return Record(
            id=str(number), problem=problem, answer=answer, source="", subject=None, level=None, solution=None
        )

    kept, dropped = without_doubles(
        [record(0, "a", "1"), record(1, "A", "2"), record(2, "b", "1"), record(3, "$a$", "1")]
    )
    assert [each.id for each in kept] == ["0", "2"]
    assert {reason: rows for reason, rows in dropped.items() if rows} == {
        "duplicate": [{"id": "3", "of": "0"}],
        "duplicate with another answer": [{"id": "1", "of": "0"}],
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there, which holds real evaluation sets")
@pytest.mark.parametrize(("name", "rows"), [("aime24", 30), ("aime25", 30), ("math500", 500), ("gsm8k", 1319)])
def test_real_evaluation_sets_are_taken_whole(tmp_path, name, rows):
    output = tmp_path / f"{name}.parquet"
    manifest = prepare(Request(source=name, output=output, original=SHARED / name))
    assert manifest["rows"] == {"read": rows, "written": rows, "dropped": 0}
    assert manifest["unparsable"] == []
    assert len(load_problems(output)) == rows
    assert manifest_path(output).is_file()
