import pytest

from megatron_rapo.data.records import Record, to_records
from megatron_rapo.data.rows import DataError
from megatron_rapo.data.sources import SOURCES, USUAL_FIELDS


def placed(*rows):
    return [(f"a.jsonl:{line}", row) for line, row in enumerate(rows, start=1)]


def record(**values):
    return Record(**{"source": "s", "subject": None, "level": None, "solution": None, **values})


def refusal(*rows, fields=USUAL_FIELDS, **options):
    with pytest.raises(DataError) as raised:
        to_records(placed(*rows), "s", fields, **options)
    return str(raised.value)


def test_usual_columns_and_what_is_not_said():
    rows = placed(
        {"problem": " p ", "answer": 70.0, "id": 0, "subject": "Algebra", "level": 3, "solution": "so", "x": 1},
        {"question": "q", "answer": "\\frac{1}{2}\n", "unique_id": "test/7.json"},
        {"problem": None, "answer": None},
    )
    assert to_records(rows, "s", USUAL_FIELDS) == [
        record(id="s/0", problem="p", answer="70", subject="Algebra", level="3", solution="so"),
        record(id="s/test/7.json", problem="q", answer="\\frac{1}{2}"),
        record(id="s/2", problem="", answer=""),
    ]


def test_simplerl_zoo_and_simplerl_zero():
    """Both files have these columns. In the other subsets, some columns are inside a struct."""
    rows = placed(
        {"question": "p", "gt_answer": "1", "answer": "no", "subject": "Algebra", "level": 5, "target": "no"},
        {
            "prompt": [{"role": "user", "content": "Question:\nq"}],
            "reward_model": {"ground_truth": "2", "style": "rule"},
            "extra_info": {"question": "q"},
        },
    )
    assert to_records(rows, "s", SOURCES["simplerl-zero-8k"].fields) == [
        record(id="s/0", problem="p", answer="1", subject="Algebra", level="5"),
        record(id="s/1", problem="q", answer="2"),
    ]


def test_gsm8k_has_its_answer_at_the_end_of_the_solution():
    source = SOURCES["gsm8k"]
    rows = placed(
        {"question": "p", "answer": "1 + 1 = <<1+1=2>>2\nnot #### yet\n#### 2,125"}, {"question": "q", "answer": "2"}
    )
    assert to_records(rows, "s", source.fields, answer_after=source.answer_after) == [
        record(id="s/0", problem="p", answer="2,125", solution="1 + 1 = <<1+1=2>>2\nnot #### yet"),
        record(id="s/1", problem="q", answer=""),
    ]


def test_olympiadbench_has_lists():
    rows = placed(
        {"id": 1606, "question": "p", "final_answer": ["$1$", "$2$"], "solution": ["a", "b"], "subfield": "x"}
    )
    assert to_records(rows, "s", SOURCES["olympiadbench"].fields) == [
        record(id="s/1606", problem="p", answer="$1$, $2$", subject="x", solution="a\n\nb")
    ]


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    row = {"problem": "p", "data": {"final": "2", "n": 1}}
    assert refusal({"problem": "p", "answer": "2"}, row) == (
        "a.jsonl:2: no column 'answer'; pass --field answer=COLUMN with one of problem, data.final, data.n."
    )
    assert refusal({}).startswith("a.jsonl:1: no column 'problem' or 'question'; ")
    assert refusal({}).endswith(" with one of (none).")
    assert refusal(row, fields={**USUAL_FIELDS, "answer": ("data.last",)}).startswith(
        "a.jsonl:1: no column 'data.last'; "
    )
    assert to_records(placed(row), "s", {**USUAL_FIELDS, "answer": ("data.final",)})[0].answer == "2"


def test_a_column_that_was_asked_for_must_be_there():
    fields, row = {**USUAL_FIELDS, "level": ("grade",)}, {"problem": "p", "answer": "2"}
    assert to_records(placed(row), "s", fields)[0].level is None
    assert refusal(row, fields=fields, required={"problem", "answer", "level"}).startswith(
        "a.jsonl:1: no column 'grade'; "
    )


def test_values_of_another_kind():
    assert refusal({"problem": ["p"], "answer": "2"}) == (
        "a.jsonl:1: 'problem' is a list, not text; pass --field problem=COLUMN with another column."
    )
    assert refusal({"problem": "p", "answer": {"a": 1}}).startswith(
        "a.jsonl:1: 'answer' is a JSON object, not text or "
    )


def test_an_id_is_there_once():
    rows = {"problem": "p", "answer": "2", "id": "x"}, {"problem": "q", "answer": "3", "id": "x"}
    assert refusal(*rows) == (
        "a.jsonl:2: the id 's/x' is also that of a.jsonl:1; pass --field id=COLUMN with another column."
    )
