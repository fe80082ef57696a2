import json

import pytest

from megatron_rapo.data import DataError, load_tokenizer


def refusal(folder):
    with pytest.raises(DataError) as raised:
        load_tokenizer(folder)
    return str(raised.value)


def test_loads_a_folder(make_tokenizer, tmp_path):
    make_tokenizer(chat_template="{{ messages[0].content }}").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("<|im_start|>a\n")["input_ids"] == make_tokenizer()("<|im_start|>a\n")["input_ids"]
    assert (tokenizer.eos_token_id, tokenizer.chat_template) == (2, "{{ messages[0].content }}")


def test_a_folder_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path):
    assert refusal("Qwen/Qwen2.5-7B") == ("Qwen/Qwen2.5-7B: no such folder; name a local Hugging Face model folder.")


def test_a_folder_without_a_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))  # enough for transformers
    assert refusal(tmp_path) == (
        f"{tmp_path}: none of tokenizer.json, tokenizer.model, vocab.json, vocab.txt, spiece.model is there; "
        "copy the model's tokenizer files."
    )


def test_a_broken_file(make_tokenizer, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{cut")
    assert refusal(tmp_path).startswith(f"{tmp_path}: its tokenizer cannot be loaded (")


def test_a_tokenizer_without_end_of_sequence(make_tokenizer, tmp_path):
    make_tokenizer(eos_token=None).save_pretrained(tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path}: the tokenizer has no end-of-sequence token, so completions could not end; "
        'set "eos_token" in tokenizer_config.json.'
    )


def test_code_in_the_folder_is_not_run_nor_asked_about(make_tokenizer, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    make_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: ...\n")
    said = refusal(folder)
    assert "contains custom code" in said and "\n" not in said
    assert not marker.exists()
