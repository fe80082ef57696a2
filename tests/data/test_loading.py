"""Shared prompts equal those that each process would build alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from megatron_rapo.data import DataError, load_prompts, template_of

ROWS = [
    {"problem": f"{n} + ½?", "answer": "0.5", "id": n, "weight": 5e-05, "tags": ["a", None, {"b": True}]}
    for n in range(30)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of shared files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"megatron_rapo-{os.getuid()}"


@pytest.fixture
def model(tmp_path: Path, make_tokenizer) -> Path:
    make_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_shared_prompts(folder: Path, model: Path, write_jsonl) -> None:
    path = write_jsonl(*ROWS)
    alone = load_prompts(path, model, template_of("plain"), 8)
    assert not folder.exists()
    shared, mapped = (load_prompts(path, model, template_of("plain"), 8, shared=True) for _ in range(2))
    assert len(list(folder.iterdir())) == 1
    (model / "tokenizer.json").touch()
    later = load_prompts(path, model, template_of("plain"), 8, shared=True)  # the tokenizer could be another
    assert len(list(folder.iterdir())) == 2
    for found in (shared, mapped, later):
        assert list(found.prompts) == list(alone.prompts) and list(found.too_long) == list(alone.too_long)
        assert found.digest() == alone.digest()
        found.unlink()
    assert not folder.exists()
    assert [p.problem.id for p in mapped.prompts] == [str(n) for n in range(10)]  # with <bos> 8 tokens, others 9
    assert mapped.prompts[0].problem.extra == {"weight": 5e-05, "tags": ["a", None, {"b": True}]}
    assert len(mapped.too_long) == 20


def test_what_is_wrong_is_said_to_everyone_and_leaves_nothing(folder: Path, model: Path, write_jsonl) -> None:
    path = write_jsonl(ROWS[0], "{")
    for _ in range(2):
        with pytest.raises(DataError, match=rf"^{path}:2: not valid JSON "):
            load_prompts(path, model, template_of("plain"), 8, shared=True)
    with pytest.raises(DataError, match=r"/none\.jsonl: no such file; check the path\.$"):
        load_prompts(path.with_name("none.jsonl"), model, template_of("plain"), 8, shared=True)
    with pytest.raises(DataError, match=r"/none: no such folder; "):
        load_prompts(path, model.with_name("none"), template_of("plain"), 8, shared=True)
    with pytest.raises(DataError, match=r"^data\.max_prompt_tokens=2: all 30 prompts are longer, and the shortest "):
        load_prompts(write_jsonl(*ROWS), model, template_of("plain"), 2, shared=True)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_file_that_is_replaced_is_another(folder: Path, model: Path, write_jsonl) -> None:
    path = write_jsonl(*ROWS)
    before = load_prompts(path, model, template_of("plain"), 99, shared=True)
    stat = path.stat()
    other = path.with_name("other")
    other.write_text("".join(json.dumps(row) + "\n" for row in reversed(ROWS)))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == stat.st_size
    after = load_prompts(path, model, template_of("plain"), 99, shared=True)
    assert list(after.prompts) == list(before.prompts)[::-1] and after.digest() != before.digest()
