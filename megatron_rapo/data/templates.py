r"""How a problem becomes the text that the model completes, and at which strings such a completion stops.

Problem texts hold braces and backslashes, so a template is joined, never formatted; Jinja gets them as values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from megatron_rapo import choices
from megatron_rapo.choices import is_reference
from megatron_rapo.config.data import TEMPLATE_SUFFIXES
from megatron_rapo.data.jinja import Case, render_jinja
from megatron_rapo.data.template_files import read_template
from megatron_rapo.errors import InputError
from megatron_rapo.runtime.user_code import UserCodeError, guarded, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
"""Of SimpleRL-Zoo and Qwen2.5-Math's evaluation."""
_REPLY = "5f3a9c"  # an assistant's message, to see how a chat template ends one


@dataclass(frozen=True, kw_only=True)
class Template:
    """What stands around a problem. The parts follow each other in this order, but for those of Jinja."""

    name: str = ""  # as data.template has it
    opening: str = ""  # before the system message
    system: str | None = None  # None: there is no system message
    before: str = ""  # before the problem
    instruction: str = ""  # on a line of its own after the problem; none where it is empty
    after: str = ""
    stop: tuple[str, ...] = ()  # strings at which a completion stops
    jinja: str | None = None  # source of a Jinja template in place of `opening`, `before` and `after`
    chat: bool = False  # the tokenizer's own Jinja template

    @property
    def is_jinja(self) -> bool:
        """Jinja renders it, for which the tokenizer is needed."""
        return self.chat or self.jinja is not None

    @property
    def digest(self) -> str:
        """Digest of what a template of the user's own puts around a problem; empty for a built-in template."""
        if self.name in TEMPLATES:
            return ""
        of_function = [] if self.name.endswith(TEMPLATE_SUFFIXES) else [self.opening, self.system, self.instruction]
        parts = json.dumps([self.before, self.after, self.jinja, *of_function])
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
    # SimpleRL-Zoo's for weak bases, which do not follow an instruction about the format; named after GAIR's Abel.
    "abel": Template(
        before="Question:\n", after="\nAnswer:\nLet's think step by step.\n", stop=("Question:", "Answer:")
    ),
    "chat": Template(instruction=INSTRUCTION, chat=True),
}
"""The templates by the name that `data.template` has for them."""
assert tuple(TEMPLATES) == choices.TEMPLATES, "megatron_rapo/choices.py lists other templates"


def template_of(name: str, *, instruction: str | None = None, system: str | None = None) -> Template:
    """Return a built-in template, the one in a file, or the user's own.

    None leaves the template's own instruction and system message.

    Raises InputError for one that is not there or cannot be used, and for a system message that it has no place for.
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
    """Return what a function of the user's own returns, checked. Raises UserCodeError."""
    field = f"data.template={reference!r}"
    template = guarded(load_function(reference, field, ()), field, "failed on a trial call")
    if not isinstance(template, Template):
        raise UserCodeError(f"{field}: returned {type(template).__name__}; return a megatron_rapo.data.Template.")
    _, opening, system, before, instruction, after, stop, jinja, chat = astuple(template)
    for part in (opening, before, instruction, after, system or "", jinja or ""):
        if not isinstance(part, str):
            raise UserCodeError(f"{field}: has {part!r:.80} where a text belongs; write a string.")
    if not isinstance(stop, tuple) or not all(isinstance(string, str) and string for string in stop):
        raise UserCodeError(f"{field}: stop is no tuple of strings that are not empty ({stop!r:.80}); write one.")
    if chat and jinja is not None:
        raise UserCodeError(f"{field}: has both chat and jinja, and only one can be rendered; leave one out.")
    return replace(template, name=reference)


def render(template: Template, problem_texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return the prompts' texts, special tokens of the template written out; only Jinja needs the tokenizer.

    Raises InputError for a template that fails, that takes too long, or in which the problem, the instruction or the
    system message does not show.
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
                f"data.template={template.name}: {what} does not show in the prompt; have the template use it"
                f"{', or leave the setting out' if what.startswith('data.') else ''}."
            )
    return texts


def template_stops(template: Template, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the strings at which completions stop: of a Jinja template, what it puts behind an assistant's message."""
    if not template.is_jinja:
        return template.stop
    reply = _case(template, "1 + 1")
    reply["messages"].append({"role": "assistant", "content": _REPLY})
    reply["add_generation_prompt"] = False
    _, [text] = render_jinja(template.name, *_jinja(template, tokenizer), [], probes=[reply])
    _, found, rest = (text or "").rpartition(_REPLY)
    if not found or not rest.strip():  # it knows no such messages, or ends them with nothing
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
    """Return the source of a Jinja template, and the special tokens that it may use by name."""
    if tokenizer is None:
        whose = "it is the tokenizer's own" if template.chat else "it may use the tokenizer's special tokens"
        raise InputError(f"data.template={template.name}: {whose}, and there is none; name the model.")
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
            "templates and none is the default; copy the right one to a file, and name that as data.template."
        ) from None
