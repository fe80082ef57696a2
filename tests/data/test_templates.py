import pytest

from megatron_rapo.config import DataConfig
from megatron_rapo.data import TEMPLATES, build_prompts, render, template_of, template_stops
from megatron_rapo.data.templates import INSTRUCTION
from megatron_rapo.errors import InputError
from megatron_rapo.types import Problem

PROBLEM = "Let $f(x) = \\frac{1}{x}$ {problem} {0} {{}} %s."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def rendered(name, tokenizer=None, **settings):
    return render(template_of(name, **settings), [PROBLEM], tokenizer)[0]


def refused(name, tokenizer=None, **settings):
    with pytest.raises(InputError) as raised:
        rendered(str(name), tokenizer, **settings)
    return str(raised.value)


def test_the_default_is_a_built_in_template():
    assert DataConfig.model_fields["template"].default in TEMPLATES


def test_plain():
    assert rendered("plain") == PROBLEM + "\n"
    assert rendered("plain", instruction="Be brief.") == PROBLEM + "\nBe brief.\n"


def test_qwen_boxed():
    assert rendered("qwen-boxed") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + PROBLEM + "\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered("qwen-boxed", instruction="", system="Be {brief}.") == (
        "<|im_start|>system\nBe {brief}.<|im_end|>\n<|im_start|>user\n" + PROBLEM + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_abel():
    assert rendered("abel") == "Question:\n" + PROBLEM + "\nAnswer:\nLet's think step by step.\n"


def test_chat(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=MESSAGES + "{% if add_generation_prompt %}[assistant]{% endif %}")
    assert rendered("chat", tokenizer) == (
        "[user]" + PROBLEM + "\nPlease reason step by step, and put your final answer within \\boxed{}.[assistant]"
    )
    assert rendered("chat", tokenizer, instruction="", system="Be brief.") == (
        "[system]Be brief.[user]" + PROBLEM + "[assistant]"
    )


def test_chat_needs_a_chat_template(make_tokenizer):
    assert refused("chat", make_tokenizer()) == (
        "data.template=chat: the tokenizer of the model has no chat template; "
        "set data.template=qwen-boxed or plain, or use an instruction-tuned model."
    )
    assert (
        refused("chat") == "data.template=chat: it is part of the tokenizer, and there is no tokenizer; name the model."
    )
    assert refused("chat", make_tokenizer(chat_template={"tool_use": "a", "rag": "b"})).endswith(
        "has several chat templates and none is the default; copy one of them to a file, and set data.template to "
        "that file."
    )


def test_a_template_of_ones_own_around_the_problem(tmp_path, make_tokenizer):
    path = tmp_path / "mine.toml"
    path.write_text('before = "Q: "\nafter = "\\nA:"\nstop = ["Q:", "<|im_end|>"]\n')
    assert rendered(str(path), instruction="Be brief.") == f"Q: {PROBLEM}\nBe brief.\nA:"
    assert template_stops(template_of(str(path)), make_tokenizer()) == ("Q:", "<|im_end|>")


def test_a_template_of_ones_own_in_jinja(tmp_path, make_tokenizer):
    """It gets the variables of a chat template and the parts by name. The file's last newline is not part of it."""
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{{ bos_token }}{{ system }}|{{ problem }}|{{ instruction }}|{{ messages[-1].content }}|"
        "{{ add_generation_prompt }}\n"
    )
    assert rendered(str(path), make_tokenizer(), instruction="I", system="S") == (
        f"<bos>S|{PROBLEM}|I|{PROBLEM}\nI|True"
    )
    assert refused(path) == (
        f"data.template={path}: it may use the tokenizer's special tokens, and there is no tokenizer; name the model."
    )


OWN = """
from megatron_rapo.data import Template

def dialogue():
    return Template(opening="[", system="S", before="]Q: ", instruction="I", after="\\nA:", stop=("Q:",))

def own_jinja(): return Template(jinja="{{ bos_token }}{{ problem }}")
def text(): return "Q: "
def number(): return Template(before=3)
def unstopped(): return Template(stop=("",))
def both(): return Template(chat=True, jinja="{{ problem }}")
def of_problem(problem): return Template()
"""


@pytest.mark.parametrize("by", ["file", "module"])
def test_a_template_of_ones_own_by_a_function(tmp_path, make_tokenizer, monkeypatch, by):
    path = tmp_path / "templates_of_ones_own.py"
    path.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    where = path if by == "file" else path.stem
    assert rendered(f"{where}:dialogue") == f"[S]Q: {PROBLEM}\nI\nA:"
    assert rendered(f"{where}:dialogue", instruction="", system="T") == f"[T]Q: {PROBLEM}\nA:"
    assert rendered(f"{where}:own_jinja", make_tokenizer()) == f"<bos>{PROBLEM}"
    template = template_of(f"{where}:dialogue")
    assert template_stops(template, make_tokenizer()) == ("Q:",) and template.name == f"{where}:dialogue"
    digests = {template_of(f"{where}:dialogue", system=system).digest for system in ("S", "T", None)}
    assert len(digests) == 2 and template.digest in digests
    prompt = build_prompts([Problem(id="a", text="ab", answer="4")], make_tokenizer(), template, 1000).prompts[0]
    assert prompt.text == "[S]Q: ab\nI\nA:"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "returned str; return a megatron_rapo.data.Template."),
        ("number", "has 3 where a text belongs; write a string."),
        ("unstopped", "stop is not a tuple of non-empty strings (('',)); write one."),
        ("both", "has both chat and jinja, and only one can be rendered; leave one out."),
        ("of_problem", "cannot be called with (): missing a required argument: 'problem'; give it these parameters."),
        ("nowhere", "has no 'nowhere'; use one of its functions: dialogue, own_jinja, "),
    ],
)
def test_a_function_that_returns_no_template(tmp_path, name, said):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    assert refused(f"{path}:{name}").startswith(f"data.template='{path}:{name}': {said}")


@pytest.mark.parametrize(
    ("source", "settings", "what"),
    [
        ("{{ messages }}{{ problem }}".replace("messages", "bos_token"), {"system": "S"}, "data.system"),
        ("{{ problem }}", {"instruction": "I"}, "data.instruction"),
        ("Solve it!", {}, "the problem"),
    ],
)
def test_what_does_not_show_in_the_prompt_is_refused(tmp_path, make_tokenizer, source, settings, what):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    fix = ", or leave the setting out" if settings else ""
    assert refused(path, make_tokenizer(), **settings) == (
        f"data.template={path}: {what} does not appear in the prompt; use it in the template{fix}."
    )


def test_a_system_message_without_a_place_is_refused():
    assert refused("plain", system="Be brief.") == (
        "data.system='Be brief.': data.template=plain has no place for a system message; leave it out, or take the "
        "template chat, qwen-boxed or one of your own."
    )


def test_an_unknown_template_is_refused():
    assert refused("r1") == (
        "data.template='r1': no such template; use one of plain, qwen-boxed, abel, chat, a file that ends in .toml or "
        ".jinja, or your own as MODULE:NAME or FILE.py:NAME (docs/extending.md)."
    )


def test_where_a_turn_ends(make_tokenizer):
    assert template_stops(template_of("qwen-boxed"), make_tokenizer()) == (
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_start|>",
    )
    assert template_stops(template_of("abel"), make_tokenizer()) == ("Question:", "Answer:")
    assert template_stops(template_of("plain"), make_tokenizer()) == ()


@pytest.mark.parametrize(
    ("chat_template", "expected"),
    [
        (CHATML, ("<|im_end|>",)),
        ("{% for m in messages %}{{ m.content }} <eos><bos>{% endfor %}", ("<eos>",)),
        ("{% for m in messages %}{{ m.content }}\n### End {% endfor %}", ("###",)),
        (MESSAGES, ()),  # nothing ends a message
        ("{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}", ()),
    ],
)
def test_where_a_turn_of_a_chat_template_ends(make_tokenizer, chat_template, expected):
    assert template_stops(template_of("chat"), make_tokenizer(chat_template=chat_template)) == expected


def test_a_prompts_tokens_are_those_that_transformers_makes_of_the_conversation(make_tokenizer):
    tokenizer = make_tokenizer(bos=True, chat_template="{{ bos_token }}" + CHATML)
    problem = Problem(id="0", text="a{b}", answer="0")
    prompt = build_prompts([problem], tokenizer, template_of("chat", system="S"), 1000).prompts[0]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": f"a{{b}}\n{INSTRUCTION}"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == expected
    assert tokenizer.decode(prompt.token_ids).replace(" ", "") == prompt.text.replace(" ", "")
