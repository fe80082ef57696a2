import pytest

from megatron_rapo.data import DataError, build_prompts, template_of
from megatron_rapo.types import Problem, Prompt

BOS = 1


def problems_of(*texts):
    return [Problem(id=str(index), text=text, answer="0") for index, text in enumerate(texts)]


def test_tokens_are_those_of_the_text(make_tokenizer):
    tokenizer = make_tokenizer()
    problem = problems_of("a{b}")[0]
    ids = tuple(tokenizer.convert_tokens_to_ids(list("a{b}\n")))
    assert build_prompts([problem], tokenizer, template_of("plain"), 8).prompts == (
        Prompt(problem=problem, text="a{b}\n", token_ids=ids),
    )


def test_special_tokens_of_the_template_are_one_token_each(make_tokenizer):
    tokenizer = make_tokenizer()
    prompt = build_prompts(problems_of("a"), tokenizer, template_of("qwen-boxed"), 1000).prompts[0]
    assert tokenizer.decode(prompt.token_ids[0]) == "<|im_start|>"
    assert prompt.token_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert 0 not in prompt.token_ids  # <unk>


def test_too_long_problems_are_left_out_whole_and_reported(make_tokenizer):
    problems = problems_of("abc", "abcd", "ab", "abcdefgh")
    found = build_prompts(problems, make_tokenizer(), template_of("plain"), 4)  # characters and a newline
    assert [prompt.problem for prompt in found.prompts] == [problems[0], problems[2]]
    assert found.too_long == (problems[1], problems[3])


def test_nothing_left_is_an_error(make_tokenizer):
    with pytest.raises(DataError) as raised:
        build_prompts(problems_of("abcd", "abc"), make_tokenizer(), template_of("plain"), 3)
    assert str(raised.value) == (
        "data.max_prompt_tokens=3: each of the 2 prompts is longer, the shortest has 4 tokens; "
        "set data.max_prompt_tokens >= 4."
    )
    with pytest.raises(DataError, match=r"^no problems to build prompts from; "):
        build_prompts([], make_tokenizer(), template_of("plain"), 3)


def test_a_tokenizer_that_starts_texts_does_so_except_for_a_chat_template(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(bos=True, chat_template="<bos>{{ messages[0].content }}")
    (tmp_path / "mine.toml").write_text('before = "<bos>Q: "')
    for template in ("plain", "qwen-boxed", "abel", "chat", str(tmp_path / "mine.toml")):
        prompt = build_prompts(problems_of("a"), tokenizer, template_of(template), 1000).prompts[0]
        assert prompt.token_ids[0] == BOS
        assert prompt.token_ids.count(BOS) == 1
    assert (
        build_prompts(problems_of("a", "ab"), tokenizer, template_of("plain"), 3).too_long[0].text == "ab"
    )  # it counts


def test_nothing_is_added_at_the_end(make_tokenizer):
    tokenizer = make_tokenizer(bos=True, eos=True)
    prompt = build_prompts(problems_of("a"), tokenizer, template_of("plain"), 8).prompts[0]
    assert tokenizer.convert_ids_to_tokens(list(prompt.token_ids)) == ["<bos>", "a", "\n"]
