from dataclasses import replace

import pytest
import xxhash

from megatron_rapo.data import DataError, PromptSet, build_prompts, template_of
from megatron_rapo.data.prompt_table import ROWS
from megatron_rapo.types import Problem, Prompt

BOS = 1


def problems_of(*texts):
    return [Problem(id=str(index), text=text, answer="0") for index, text in enumerate(texts)]


def test_tokens_are_those_of_the_text(make_tokenizer):
    tokenizer = make_tokenizer()
    problem = problems_of("a{b}")[0]
    ids = tuple(tokenizer.convert_tokens_to_ids(list("a{b}\n")))
    assert list(build_prompts([problem], tokenizer, template_of("plain"), 8).prompts) == [
        Prompt(problem=problem, text="a{b}\n", token_ids=ids)
    ]


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
    assert list(found.too_long) == [problems[1], problems[3]]


def test_nothing_left_is_an_error(make_tokenizer):
    with pytest.raises(DataError) as raised:
        build_prompts(problems_of("abcd", "abc"), make_tokenizer(), template_of("plain"), 3)
    assert str(raised.value) == (
        "data.max_prompt_tokens=3: all 2 prompts are longer, and the shortest has 4 tokens; "
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


def test_what_the_tokenizer_file_says_of_cutting_and_padding_does_not_count(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert [
        len(p.token_ids) for p in build_prompts(problems_of("abcd", "a"), tokenizer, template_of("plain"), 9).prompts
    ] == [5, 2]


def test_prompts_are_a_sequence_over_pieces(make_tokenizer):
    """There are more than two pieces, and some of their problems are left out."""
    problems = problems_of(*("a" * (1 + n % 3) for n in range(2 * ROWS + 5)))
    found = build_prompts(iter(problems), make_tokenizer(), template_of("plain"), 3)
    prompts = found.prompts
    assert (len(prompts), len(found.too_long)) == (10926, 5463)
    assert [p.problem for p in prompts] == [problem for problem in problems if len(problem.text) < 3]
    assert [len(p.token_ids) for p in prompts[7:10]] == [3, 2, 3] == [len(prompts[i].token_ids) for i in (7, 8, 9)]
    assert prompts[-1].problem == problems[-2] and list(prompts[-2:]) == [prompts[10924], prompts[10925]]
    assert found.too_long[-1] == problems[-1] and list(found.too_long[:2]) == [problems[2], problems[5]]
    with pytest.raises(IndexError):
        prompts[len(prompts)]


def test_the_digest_is_of_problems_answers_and_tokens_in_order(make_tokenizer):
    tokenizer = make_tokenizer()
    first, second = problems_of("a", "½")
    found = build_prompts([first, second], tokenizer, template_of("plain"), 3)
    content = b""
    for problem, ids in zip((first, second), [p.token_ids for p in found.prompts], strict=True):
        for part in (problem.text.encode(), b"0", b"".join(i.to_bytes(4, "little") for i in ids)):
            content += len(part).to_bytes(8, "little") + part
    assert found.digest() == xxhash.xxh3_128_hexdigest(content)
    assert PromptSet(prompts=tuple(found.prompts), too_long=()).digest() == found.digest()

    def digest(*problems, limit=3, template="plain"):
        return build_prompts(problems, tokenizer, template_of(template), limit).digest()

    long = problems_of("abc")[0]
    renamed = replace(first, id="x", extra={"level": 1})
    assert digest(long, renamed, second) == digest(first, second) == found.digest()  # the long one is left out
    others = [(second, first), (first,), (first, replace(second, answer="1")), (first, replace(second, text="b"))]
    different = {*(digest(*each) for each in others), digest(first, second, template="abel", limit=99)}
    assert len(different) == 5 and found.digest() not in different
