import json

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<unk>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))


@pytest.fixture
def make_tokenizer():
    """Make a tokenizer with a token per character and special token. It adds `bos` and `eos` if given."""

    def make(*, bos=False, eos=False, chat_template=None, eos_token="<eos>"):
        vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        if bos or eos:
            core.post_processor = processors.TemplateProcessing(
                single=" ".join(["<bos>"] * bos + ["$A"] + ["<eos>"] * eos), special_tokens=[("<bos>", 1), ("<eos>", 2)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            unk_token="<unk>",
            bos_token="<bos>",
            eos_token=eos_token,
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            chat_template=chat_template,
        )

    return make


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows (objects, or lines as they are) to a file, and return its path."""

    def write(*rows, name="train.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write
