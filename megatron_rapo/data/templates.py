r"""How a problem becomes the text that the model completes.

Problem texts hold braces and backslashes, so a template is joined, never formatted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_rapo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
"""Of SimpleRL-Zoo and Qwen2.5-Math's evaluation."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What stands around a problem."""

    before: str = ""
    after: str
    chat: bool = False  # all of it is the user's message, in the chat template of the tokenizer


TEMPLATES: Mapping[str, Template] = {
    "plain": Template(after="\n"),
    "qwen-boxed": Template(
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        after=f"\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
    ),
    # SimpleRL-Zoo's for weak bases, which do not follow an instruction about the format; named after GAIR's Abel.
    "abel": Template(before="Question:\n", after="\nAnswer:\nLet's think step by step.\n"),
    "chat": Template(after=f"\n{INSTRUCTION}", chat=True),
}
"""The templates by the name that `data.template` has for them."""


def template_of(name: str) -> Template:
    """Raises InputError for one that is not there."""
    if name not in TEMPLATES:
        raise InputError(f"data.template={name!r}: no such template; use one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def render(template: str, problem_text: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The prompt's text, special tokens of the template written out; only `chat` needs the tokenizer.

    Raises InputError where there is no such template, or no chat template to put it in.
    """
    parts = template_of(template)
    text = parts.before + problem_text + parts.after
    return _in_chat(text, template, tokenizer) if parts.chat else text


def _in_chat(message: str, template: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        raise InputError(f"data.template={template}: it is the tokenizer's own, and there is none; name the model.")
    if not tokenizer.chat_template:
        raise InputError(
            f"data.template={template}: the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; "
            "set data.template=qwen-boxed or plain, or use an instruction-tuned model."
        )
    messages = [{"role": "user", "content": message}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str), "one conversation renders to one text"
    return text
