import json

import pytest

from megatron_rapo.data import DataError, Stops, find_stops


@pytest.fixture
def find(tmp_path, make_tokenizer):
    """Return find(file=content, ...), which returns the stops of a model folder with these files."""

    def find(*, strings=(), token_ids=(), **files):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        return find_stops(tmp_path, make_tokenizer(), vocab_size=101, strings=strings, token_ids=token_ids)

    return find


def test_the_models_own_end_of_sequence_tokens(find):
    assert find().token_ids == (2,)  # the tokenizer's
    assert find(config={"eos_token_id": None}, generation_config={}).token_ids == (2,)
    assert find(config={"eos_token_id": 1}, generation_config={"eos_token_id": [3, 4]}).token_ids == (1, 2, 3, 4)


def test_a_string_that_is_a_special_token_stops_by_its_id_too(find):
    """Decoding omits the token, so the string alone would not be found in the text."""
    found = find(strings=("<|im_end|>", "<|endoftext|>", "Q:", "Q"), token_ids=(50,))
    assert found == Stops(
        token_ids=(2, 4, 50),  # "<|endoftext|>" is no token here, and would be read as <unk>; "Q" is seen in the text
        strings=("<|im_end|>", "<|endoftext|>", "Q:", "Q"),
        shown="token '<eos>' (2), '<|im_end|>' (4), 'L' (50); text '<|im_end|>', '<|endoftext|>', 'Q:', 'Q'",
    )


def test_a_token_that_the_model_does_not_have(find, tmp_path):
    with pytest.raises(DataError) as raised:
        find(token_ids=(3, 101))
    assert str(raised.value) == (
        f"rollout.stop_token_ids=[3, 101]: 101 is no token of {tmp_path}, which has 101 (ids 0 to 100); remove it."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((json.dumps({"eos_token_id": eos}), "eos_token_id=") for eos in (101, -1, "</s>", [2, None], True, 2.0, {})),
        ('{"eos_token_id": ' + "9" * 5_000 + "}", "has an integer of 5,000 digits"),
        ("[" * 100_000, "is nested too deeply"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_files_that_name_no_token(find, tmp_path, content, reason):
    with pytest.raises(DataError) as raised:
        find(generation_config=content)
    assert str(raised.value).startswith(f"{tmp_path}/generation_config.json: {reason}")
    assert str(raised.value).endswith("copy the model's own file again.")
