import pytest

from megatron_rapo.data.template_files import read_template
from megatron_rapo.errors import InputError


def test_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('after = "\\nA:"')
    assert read_template(str(path)) == {"after": "\nA:", "stop": ()}


def test_jinja(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ problem }}")
    assert read_template(str(path)) == {"jinja": "{{ problem }}"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "puts nothing around a problem; write before, after or both."),
        (b'before = ""\nstop = ["a"]', "puts nothing around a problem; write before, after or both."),
        (b'befor = "Q"', "'befor': no such key; keys are before, after, stop."),
        (b"before = 3", "'before' is not a string; write one."),
        (b'after = "a"\nstop = "b"', "'stop' is not a list of non-empty strings; write one."),
        (b'after = "a"\nstop = [""]', "'stop' is not a list of non-empty strings; write one."),
        (b"after = ", "not valid TOML (Invalid value (at end of document)); fix that line."),
        (b"after = " + b"[" * 100_000, "not valid TOML (RecursionError); fix it."),
        (b"after = " + b"1" * 5_000, "not valid TOML (ValueError); fix it."),
        (b"after = '\xff'", "not UTF-8; save the file as UTF-8."),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, reason):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_template(str(path))
    assert str(raised.value) == f"data.template={path}: {reason}"


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for name, reason in (("no.toml", "no such file; check the path."), ("folder.toml", "cannot be read (Is a")):
        with pytest.raises(InputError, match=rf"^data\.template=.*/{name}: ") as raised:
            read_template(str(tmp_path / name))
        assert f": {reason}" in str(raised.value)
