r"""Turn a problem into the text that the model completes, and find the strings at which the completion stops.

Problem texts have braces and backslashes. So the parts of a template are joined and never used as format strings.
Jinja gets problem texts as values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from megatron_rapo import builtin_names
from megatron_rapo.builtin_names import is_reference
from megatron_rapo.config.data import TEMPLATE_SUFFIXES
from megatron_rapo.data.jinja import Case, render_jinja
from megatron_rapo.data.template_files import read_template
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.user_code import UserCodeError, guarded, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
"""The instruction in SimpleRL-Zoo and in the evaluation of Qwen2.5-Math."""
_REPLY = "5f3a9c"  # an assistant's message that shows how a chat template ends one


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text around a problem. Without Jinja, the parts are joined in this order."""

    name: str = ""  # the value of data.template
    opening: str = ""  # before the system message
    system: str | None = None  # None: no system message
    before: str = ""  # before the problem
    instruction: str = ""  # on a separate line after the problem; no line if empty
    after: str = ""
    stop: tuple[str, ...] = ()  # strings at which a completion stops
    jinja: str | None = None  # source of a Jinja template that replaces `opening`, `before` and `after`
    chat: bool = False  # the tokenizer's own Jinja template

    @property
    def is_jinja(self) -> bool:
        """Return whether Jinja renders the template, which needs the tokenizer."""
        return self.chat or self.jinja is not None

    @property
    def digest(self) -> str:
        """Return a digest of the text that the user's template puts around a problem; empty for a built-in one."""
        if self.name in TEMPLATES:
            return ""
        own_parts = [] if self.name.endswith(TEMPLATE_SUFFIXES) else [self.opening, self.system, self.instruction]
        parts = json.dumps([self.before, self.after, self.jinja, *own_parts])
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()

    def message(self, problem_text: str) -> str:
        """Return the problem with the instruction."""
        return f"{problem_text}\n{self.instruction}" if self.instruction else problem_text


TEMPLATES: Mapping[str, Template] = {
    "plain": Template(after="\n"),
    "qwen-boxed": Template(
        opening="<|im_start|>system\n",
        system="You are a helpful assistant.",
        before="<|im_end|>\n<|im_start|>user\n",
        instruction=INSTRUCTION,
        after="<|im_end|>\n<|im_start|>assistant\n",
        stop=("<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    ),
    # SimpleRL-Zoo's template for weak base models, which ignore an instruction on the format. Named after GAIR's Abel.
    "abel": Template(
        before="Question:\n", after="\nAnswer:\nLet's think step by step.\n", stop=("Question:", "Answer:")
    ),
    "chat": Template(instruction=INSTRUCTION, chat=True),
}
"""The built-in templates by their name in `data.template`."""
assert tuple(TEMPLATES) == builtin_names.TEMPLATES, "megatron_rapo/builtin_names.py lists other templates"


def template_of(name: str, *, instruction: str | None = None, system: str | None = None) -> Template:
    """Return the template `name`: a built-in one, one in a file, or the user's own code.

    `instruction` and `system` replace the template's own, unless they are None. Raises InputError for a template that
    does not exist or cannot be used, and for a system message if the template has no place for one.
    """
    if name in TEMPLATES:
        template = replace(TEMPLATES[name], name=name)
    elif name.endswith(TEMPLATE_SUFFIXES):
        template = Template(name=name, **read_template(name))
    elif is_reference(name):
        template = _own_template(name)
    else:
        raise InputError(
            f"data.template={name!r}: no such template; use one of {', '.join(TEMPLATES)}, a file that ends in "
            f"{' or '.join(TEMPLATE_SUFFIXES)}, or your own as MODULE:NAME or FILE.py:NAME (docs/extending.md)."
        )
    if system is not None:
        if template.system is None and not template.is_jinja:
            raise InputError(
                f"data.system={system!r:.80}: data.template={name} has no place for a system message; leave it out, or "
                "take the template chat, qwen-boxed or one of your own."
            )
        template = replace(template, system=system)
    return template if instruction is None else replace(template, instruction=instruction)


@cache
def _own_template(reference: str) -> Template:
    """Call the user's function and return its template, checked. Raises UserCodeError."""
    field = f"data.template={reference!r}"
    template = guarded(load_function(reference, field, ()), field, "failed on a trial call")
    if not isinstance(template, Template):
        raise UserCodeError(f"{field}: returned {type(template).__name__}; return a megatron_rapo.data.Template.")
    _, opening, system, before, instruction, after, stop, jinja, chat = astuple(template)
    for part in (opening, before, instruction, after, system or "", jinja or ""):
        if not isinstance(part, str):
            raise UserCodeError(f"{field}: has {part!r:.80} where a text belongs; write a string.")
    if not isinstance(stop, tuple) or not all(isinstance(string, str) and string for string in stop):
        raise UserCodeError(f"{field}: stop is not a tuple of non-empty strings ({stop!r:.80}); write one.")
    if chat and jinja is not None:
        raise UserCodeError(f"{field}: has both chat and jinja, and only one can be rendered; leave one out.")
    return replace(template, name=reference)


def render(template: Template, problem_texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return the prompts' texts, in which special tokens are written as text. Only Jinja needs the tokenizer.

    Raises InputError if the template fails or takes too long, or if its output lacks the problem, the instruction or
    the system message.
    """
    if not template.is_jinja:
        start = "" if template.system is None else template.opening + template.system
        return [start + template.before + template.message(text) + template.after for text in problem_texts]
    first = problem_texts[0]
    probes = {"the problem": _case(template, f"{first} {_REPLY}")}
    if template.instruction:
        probes["data.instruction"] = _case(replace(template, instruction=""), first)
    if template.system is not None:
        probes["data.system"] = _case(replace(template, system=None), first)
    cases = [_case(template, text) for text in problem_texts]
    texts, others = render_jinja(template.name, *_jinja(template, tokenizer), cases, probes=list(probes.values()))
    for what, other in zip(probes, others, strict=True):
        if other == texts[0]:
            raise InputError(
                f"data.template={template.name}: {what} does not appear in the prompt; use it in the template"
                f"{', or leave the setting out' if what.startswith('data.') else ''}."
            )
    return texts


def template_stops(template: Template, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the strings at which completions stop. For a Jinja template, this is what ends an assistant's message."""
    if not template.is_jinja:
        return template.stop
    reply = _case(template, "1 + 1")
    reply["messages"].append({"role": "assistant", "content": _REPLY})
    reply["add_generation_prompt"] = False
    _, [text] = render_jinja(template.name, *_jinja(template, tokenizer), [], probes=[reply])
    _, found, rest = (text or "").rpartition(_REPLY)
    if not found or not rest.strip():  # it does not support such messages, or puts nothing after them
        return ()
    first = tokenizer.encode(rest.strip(), add_special_tokens=False)[0]
    if tokenizer.decode([first], skip_special_tokens=True) == "":
        return (str(tokenizer.convert_ids_to_tokens(first)),)
    return (rest.split()[0],)


def _case(template: Template, problem_text: str) -> Case:
    """Return the variables of a Jinja template for one problem."""
    system = [] if template.system is None else [{"role": "system", "content": template.system}]
    return {
        "messages": [*system, {"role": "user", "content": template.message(problem_text)}],
        "problem": problem_text,
        "instruction": template.instruction,
        "system": template.system,
        "add_generation_prompt": True,
    }


def _jinja(template: Template, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, dict[str, Any]]:
    """Return the source of a Jinja template, and the special tokens that it may use as variables."""
    if tokenizer is None:
        why = "it is part of the tokenizer" if template.chat else "it may use the tokenizer's special tokens"
        raise InputError(f"data.template={template.name}: {why}, and there is no tokenizer; name the model.")
    if template.jinja is not None:
        return template.jinja, tokenizer.special_tokens_map
    if not tokenizer.chat_template:
        raise InputError(
            f"data.template={template.name}: the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat "
            "template; set data.template=qwen-boxed or plain, or use an instruction-tuned model."
        )
    try:
        return tokenizer.get_chat_template(), tokenizer.special_tokens_map
    except ValueError:
        raise InputError(
            f"data.template={template.name}: the tokenizer of {tokenizer.name_or_path or 'the model'} has several chat "
            "templates and none is the default; copy one of them to a file, and set data.template to that file."
        ) from None
