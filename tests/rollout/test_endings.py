"""Check where completions end, with a tokenizer of characters, parts of characters and words."""

from itertools import pairwise

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_rapo.data import Stops
from megatron_rapo.rollout.endings import Ending, Endings

WORDS = ("Question:", "estion", ":\nx", "\\boxed{4}", "\\boxed{7}")
SPECIAL = ("<eos>", "<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer():
    """Build a byte-level tokenizer. Any text has tokens, and a character of several bytes can have several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.fixture
def endings(tokenizer):
    def make(*strings, token_ids=()):
        decode = lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)  # noqa: E731
        return Endings(Stops(token_ids=token_ids, strings=strings), decode)

    return make


def tokens_of(tokenizer, *pieces):
    return [token_id for piece in pieces for token_id in tokenizer.encode(piece)]


@pytest.mark.parametrize(
    ("pieces", "strings", "num_tokens", "text"),
    [
        (["a", "b", "c"], (), None, "abc"),
        (["a", "Question:", "b"], ("Question:",), 2, "a"),
        (["a", "b", "Qu", "estion", ":\nx", "y"], ("Question:",), 6, "ab"),  # "Qu" is two tokens
        (["a", ":\nx", "b"], (":", "\n"), 2, "a"),  # completed by one token: the earlier one cuts
        (["a", "b", "c", "d"], ("cd", "bc"), 3, "a"),  # the first that is completed, whatever their order
        (["a", "é", "b"], ("é",), 3, "a"),  # of two bytes
        (["a", "€", "b"], ("€b",), 5, "a"),
        (["<|im_end|>", "a", "<eos>", "b"], ("ab",), 4, ""),  # special tokens are no text
        (["Question:"], ("Question:",), 1, ""),
        ([], ("Question:",), None, ""),
    ],
)
def test_the_end_by_a_string(tokenizer, endings, pieces, strings, num_tokens, text):
    token_ids, found = tokens_of(tokenizer, *pieces), endings(*strings)
    stopped = num_tokens is not None
    assert found.find(token_ids) == Ending(num_tokens if stopped else len(token_ids), text, stopped)
    # Token by token, as the engine asks, whatever was begun before: with the same end.
    for begun in range(len(token_ids)):
        ends = [
            n for n in range(begun + 1, len(token_ids) + 1) if found.completed(token_ids[:begun], token_ids[begun:n])
        ]
        assert ends[:1] == ([num_tokens] if stopped and begun < num_tokens else ends[:1])
        assert stopped or not ends


def test_the_end_by_a_token(tokenizer, endings):
    end, eos = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id
    token_ids = tokens_of(tokenizer, "\\boxed{4}", "<|im_end|>", "user", "\\boxed{7}", "<eos>")
    assert endings(token_ids=(eos,)).find(token_ids) == Ending(len(token_ids), "\\boxed{4}user\\boxed{7}", True)
    assert endings(token_ids=(eos, end)).find(token_ids) == Ending(2, "\\boxed{4}", True)
    assert endings("boxed{7", token_ids=(eos, end)).find(token_ids) == Ending(2, "\\boxed{4}", True)
    assert endings("boxed{4", token_ids=(eos, end)).find(token_ids) == Ending(1, "\\", True)


def test_the_text_before_a_stop_token_has_not_its_word(tokenizer, endings):
    """A stop token that is not special has a text, but that is not judged (as in vLLM)."""
    word = tokenizer.convert_tokens_to_ids("Question:")
    assert endings(token_ids=(word,)).find(tokens_of(tokenizer, "a", "Question:", "b")) == Ending(2, "a", True)


def test_the_same_end_whenever_it_is_looked_for(tokenizer, endings):
    """The same tokens are kept if all tokens are searched, or only those up to any token after the end."""
    token_ids = tokens_of(tokenizer, *"a long text about <|im_en and: <|im_end|", ">", *" <|im_end|> more")
    found = endings("<|im_end|>")
    ends = [found.find(token_ids[:n]) for n in range(len(token_ids) + 1)]
    first = next(n for n, ending in enumerate(ends) if ending.stopped)
    assert ends[first] == Ending(first, "a long text about <|im_en and: ", True) and len(set(ends[first:])) == 1
    assert not any(ending.stopped for ending in ends[:first])


def test_only_where_it_could_be_is_a_string_looked_for(tokenizer):
    asked = []

    def decode(ids):
        asked.append(list(ids))
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    found, token_ids = Endings(Stops(strings=("<|im_end|>",)), decode), tokens_of(tokenizer, *"about 2 < 3 and 3 " * 9)
    for n in range(1, len(token_ids) + 1):
        assert found.completed([], token_ids[:n]) is None
    assert sorted(asked) == sorted([token_id] * 2 for token_id in set(token_ids))
    assert all(a != b for a, b in pairwise(sorted(asked)))
