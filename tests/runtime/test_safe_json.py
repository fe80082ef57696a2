"""JSON from untrusted sources is read, or refused with one reason."""

import pytest

from megatron_rapo.runtime.safe_json import JSONError, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, "\\u00e9", "\\ud83d\\ude00"]}', {"a": [1, 2.5, "é", "😀"]}),
        (b'\xef\xbb\xbf"bom"', "bom"),
        ("9" * 4000, int("9" * 4000)),
    ],
    ids=["values", "byte order mark", "a long integer"],
)
def test_json_is_read_as_it_is(text, value):
    assert parse_json(text) == value


def test_moderate_nesting_is_read():
    value, depth = parse_json("[" * 500 + "]" * 500), 0
    while value:
        [value] = value
        depth += 1
    assert depth == 499


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,}', "not valid JSON"),
        ("", "not valid JSON (Expecting value, line 1, column 1)"),
        (b'"\xff"', "not UTF-8 (byte 1)"),
        ("1" * 5000, "has an integer of 5,000 digits, and 4,000 is the limit"),
        ("[" * 100_000 + "]" * 100_000, "is nested too deeply"),
        ('{"a": "1+1\\ud800"}', "has half a surrogate pair (\\ud800), which is not a character"),
        ('{"\\udfff": 1}', "has half a surrogate pair (\\udfff)"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(text, reason, tmp_path):
    with pytest.raises(JSONError) as refused:
        parse_json(text)
    assert reason in str(refused.value)
    file = tmp_path / "file.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JSONError):
        read_json(file)
