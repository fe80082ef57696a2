"""Templates that fail or never end give a one-line error within the limits. Each test starts a process."""

from datetime import datetime

import pytest

from megatron_rapo.data.jinja import render_jinja
from megatron_rapo.data.jinja_process import DAY
from megatron_rapo.errors import InputError

LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
CASES = [
    {"messages": [{"role": "user", "content": text}], "add_generation_prompt": True} for text in ("a", "<b>\u2028")
]


def refused(source, cases=CASES, **limits):
    with pytest.raises(InputError) as raised:
        render_jinja("chat", source, {}, cases, **limits)
    return str(raised.value)


def test_texts_are_those_of_transformers(make_tokenizer):
    source = (
        "{%- set x = namespace(n=0) -%}\n{%- for m in messages -%}\n{%- set x.n = x.n + 1 -%}\n"
        "{{ m | tojson }} {{ m.content | upper }} {{ x.n }} {{ eos_token }}\n{% if loop.last %}{% break %}{% endif %}\n"
        "{% endfor %}{% generation %}!{% endgeneration %}\n"
    )
    tokenizer = make_tokenizer(chat_template=source)
    expected = [tokenizer.apply_chat_template(case["messages"], tokenize=False) for case in CASES]
    probes = [{"messages": []}, {"messages": 1}]
    found = render_jinja("chat", source, tokenizer.special_tokens_map, CASES, probes=probes)
    assert found == (expected, ["!", None])


def test_the_day_is_always_the_same():
    source = "{{ strftime_now('%d %B %Y') }}"
    assert datetime(2024, 7, 26) == DAY
    assert render_jinja("chat", source, {}, CASES[:1]) == (["26 July 2024"], [])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('\x1b[2J roles\nmust') }}", "fails on prompt 0 ('TemplateError: \\x1b[2J roles\\nmust')"),
        ("{{ messages[0].content }}{{ 1 / (messages[0].content == 'a') }}", "fails on prompt 1 ('ZeroDivisionError: "),
        ("{{ nothing.at.all }}", "fails on prompt 0 (\"UndefinedError: 'nothing' is undefined\")"),
        ("{% for %}", 'fails on prompt 0 ("TemplateSyntaxError: '),
        ("{{ ''.__class__.__mro__ }}", 'fails on prompt 0 ("SecurityError: '),
        ("{{ 'a' * 2000000 }}", "fails on prompt 0 ('ValueError: a text of 2,000,000 characters')"),
        ("{{ 'a' * 20000000000 }}", "fails on prompt 0 ('MemoryError: "),
        ("{{ '\\ud800' }}", "cannot be rendered (has half a surrogate pair (\\ud800), which is not a character)"),
    ],
)
def test_a_template_that_fails_is_one_line(source, reason):
    message = refused(source)
    assert message.startswith(f"data.template=chat: {reason}") and message.endswith("; fix the template.")
    assert message.isprintable()


@pytest.mark.parametrize("source", [LOOP, "{{ 10 ** (10 ** 9) }}"], ids=["looping", "in one long operation"])
def test_a_template_that_never_ends_is_ended(source):
    assert refused(source, seconds=1.0) == (
        "data.template=chat: 2 prompts were not rendered within 1 s; remove slow or endless loops from the template."
    )
