"""The user's code by file and by module, and refusals. tests/rewards/test_user_functions.py has more refusals."""

import json

import pytest

from megatron_rapo.runtime.user_code import UserCodeError, guarded, load_function, load_object, source_of


def test_by_file_and_by_module(tmp_path, monkeypatch):
    path = tmp_path / "by_both_ways.py"
    path.write_text("answer = 42\ndef double(x): return 2 * x\n")
    assert load_object(f"{path}:answer", "f") == 42
    assert load_function(f"{path}:double", "f", ["x"])(4) == 8
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function("by_both_ways:double", "f", ["x"])(5) == 10
    assert source_of("by_both_ways:double") == source_of(f"{path}:double") == path


def test_a_source_that_is_not_python_is_none():
    assert source_of("math:sqrt") is None and source_of("nowhere_at_all:f") is None
    assert str(source_of("json:loads")) == json.__file__


def test_what_it_raises_is_the_inputs_fault():
    with pytest.raises(UserCodeError) as refused:
        guarded(lambda: [][1], "section.field='m:f'", "failed on a trial call")
    assert str(refused.value) == (
        "section.field='m:f': failed on a trial call (IndexError: list index out of range); fix it."
    )
    with pytest.raises(KeyboardInterrupt):
        guarded(lambda: (_ for _ in ()).throw(KeyboardInterrupt), "f", "failed")
