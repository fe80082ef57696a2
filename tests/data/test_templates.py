from typing import get_args

import pytest

from megatron_rapo.config import DataConfig
from megatron_rapo.data import TEMPLATES, render
from megatron_rapo.errors import InputError

PROBLEM = "Let $f(x) = \\frac{1}{x}$ {problem} {0} {{}} %s."


def test_the_configuration_knows_the_same_templates():
    assert tuple(TEMPLATES) == get_args(DataConfig.model_fields["template"].annotation)


def test_plain(make_tokenizer):
    assert render("plain", PROBLEM, make_tokenizer()) == PROBLEM + "\n"


def test_qwen_boxed(make_tokenizer):
    assert render("qwen-boxed", PROBLEM, make_tokenizer()) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + PROBLEM + "\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_abel():
    assert render("abel", PROBLEM, None) == "Question:\n" + PROBLEM + "\nAnswer:\nLet's think step by step.\n"


def test_chat(make_tokenizer):
    tokenizer = make_tokenizer(
        chat_template="{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert render("chat", PROBLEM, tokenizer) == (
        "[user]" + PROBLEM + "\nPlease reason step by step, and put your final answer within \\boxed{}.[assistant]"
    )


def test_chat_needs_a_chat_template(make_tokenizer):
    with pytest.raises(InputError) as raised:
        render("chat", PROBLEM, make_tokenizer())
    assert str(raised.value) == (
        "data.template=chat: the tokenizer of the model has no chat template; "
        "set data.template=qwen-boxed or plain, or use an instruction-tuned model."
    )
    with pytest.raises(InputError) as raised:
        render("chat", PROBLEM, None)
    assert str(raised.value) == "data.template=chat: it is the tokenizer's own, and there is none; name the model."


def test_an_unknown_template_is_refused(make_tokenizer):
    with pytest.raises(InputError) as raised:
        render("r1", PROBLEM, make_tokenizer())
    assert str(raised.value) == "data.template='r1': no such template; use one of plain, qwen-boxed, abel, chat."
