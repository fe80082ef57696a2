import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rapo.data import DataError, load_problems
from megatron_rapo.data.parquet import ROWS_AT_A_TIME, parquet_rows


@pytest.fixture
def write(tmp_path):
    def write(columns, metadata=None, **options):
        path = tmp_path / "train.parquet"
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
        return path

    return write


def refusal(path):
    with pytest.raises(DataError) as raised:
        load_problems(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_images_and_sound_are_neither_fetched_nor_opened_nor_read(write, tmp_path):
    """The file is as the datasets library writes it. One path is a web page, the other a file that is not an image."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    paths = ["http://127.0.0.1:9/picture.png", str(secret)]
    media = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    features = {
        "problem": {"dtype": "string", "_type": "Value"},
        "answer": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "sound": {"_type": "Audio"},
        "link": {"_type": "Image"},
    }
    columns = {"problem": ["p", "q"], "answer": ["1", "2"], "image": media, "sound": media, "link": paths}
    path = write(columns, {"huggingface": json.dumps({"info": {"features": features}})})
    problems = load_problems(path)
    assert [(p.text, p.answer, p.extra) for p in problems] == [
        ("p", "1", {"link": paths[0]}),
        ("q", "2", {"link": paths[1]}),
    ]


def test_kinds_of_columns(write):
    nested = pa.array([{"n": 1, "x": [0.5, None]}, None], pa.struct({"n": pa.int8(), "x": pa.list_(pa.float32())}))
    path = write(
        {
            "text": pa.array(["½", None], pa.large_string()),
            "category": pa.array(["a", "b"]).dictionary_encode(),
            "truth": [True, None],
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
            "nested": nested,
            "nothing": pa.nulls(2),
            "bytes": [b"\xff", b""],
            "day": pa.array([0, 1], pa.date32()),
        }
    )
    first, second = parquet_rows(path)
    assert str(first.pop("bytes")) == "Unread(kind='binary')" and str(first.pop("day")) == "Unread(kind='date32[day]')"
    nested = {"n": 1, "x": [0.5, None]}
    assert first == {"text": "½", "category": "a", "truth": True, "big": 2**64 - 1, "nested": nested, "nothing": None}
    assert [second[name] for name in ("text", "truth", "nested", "nothing")] == [None] * 4


@pytest.mark.parametrize(
    ("column", "answer"),
    [
        (pa.array([0.00005]), "0.00005"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([1e-5], pa.float32()), "0.00001"),
        (pa.array([0.1], pa.float32()).cast(pa.float16()), "0.1"),
        (pa.array([70.0]), "70"),
        (pa.array([decimal.Decimal("12345678901234567890.50")], pa.decimal128(30, 2)), "12345678901234567890.50"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array(["1e-05"]), "0.00001"),
    ],
)
def test_answers_that_are_numbers(write, column, answer):
    assert load_problems(write({"problem": ["p"], "answer": column}))[0].answer == answer


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array([True]), "True"),
        (pa.array([float("nan")]), "nan"),
        (pa.array([b"2"]), "of type binary"),
        (pa.array([0], pa.timestamp("ns")), "of type timestamp[ns]"),
        (pa.array([["2"]]), "a list"),
    ],
)
def test_answers_that_are_none(write, column, what):
    path = write({"problem": ["p"], "answer": column})
    assert refusal(path) == f"{path}:row 0: 'answer' is {what}, not text or a number; write a string there."


def test_row_groups_of_any_size_in_order(write):
    count = 2 * ROWS_AT_A_TIME + 7
    path = write({"problem": [f"p{i}" for i in range(count)], "answer": list(range(count))}, row_group_size=700)
    assert [(p.text, p.answer) for p in load_problems(path)] == [(f"p{i}", str(i)) for i in range(count)]


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["p"])] * 2, ["problem"] * 2), path)
    assert refusal(path) == f"{path}: two columns are called 'problem'; rename one."


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    text = pa.array([b"1+1\xed\xa0\x80"]).view(pa.string())  # half a surrogate pair
    pq.write_table(pa.table({"problem": text, "answer": ["2"]}), path)
    assert refusal(path) == f"{path}: has text that is not UTF-8; write it again as UTF-8."


@pytest.mark.parametrize("damage", ["magic", "footer", "page", "half", "empty", "codec"])
def test_damaged_files(write, damage):
    path = write(
        {"problem": ["How much is it?"] * 50, "answer": ["2"] * 50}, write_page_checksum=True, compression="snappy"
    )
    whole = bytearray(path.read_bytes())
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    if damage == "magic":
        whole[-4:] = b"PARX"
    elif damage == "footer":
        whole[footer + 4 : footer + 40] = b"\xff" * 36
    elif damage == "page":  # the values of the last column
        whole[footer - 4] ^= 1
    elif damage == "half":
        del whole[len(whole) // 2 :]
    elif damage == "empty":
        whole.clear()
    else:  # LZO, which nobody writes any more
        schema = pq.read_metadata(path)
        assert schema.row_group(0).column(0).compression == "SNAPPY"
        at = whole.index(b"problem", whole.index(b"problem", footer) + 1) + len("problem")  # of the column chunk
        assert whole[at : at + 2] == b"\x15\x02"
        whole[at + 1] = 6
    path.write_bytes(whole)
    assert refusal(path).startswith(f"{path}: not a Parquet file that can be read, or damaged (")
