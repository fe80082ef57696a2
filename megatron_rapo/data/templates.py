r"""How a problem becomes the text that the model completes.

Problem texts hold braces and backslashes, so a template is joined, never formatted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from megatron_rapo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
"""Of SimpleRL-Zoo and Qwen2.5-Math's evaluation."""


def _plain(problem: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return problem + "\n"


def _qwen_boxed(problem: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{problem}\n{INSTRUCTION}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def _chat(problem: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"data.template=chat: the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; "
            "set data.template=qwen-boxed or plain, or use an instruction-tuned model."
        )
    messages = [{"role": "user", "content": f"{problem}\n{INSTRUCTION}"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str), "one conversation renders to one text"
    return text


TEMPLATES: Mapping[str, Callable[[str, PreTrainedTokenizerBase], str]] = {
    "plain": _plain,
    "qwen-boxed": _qwen_boxed,
    "chat": _chat,
}
"""The templates by the name that `data.template` has for them."""


def render(template: str, problem_text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt's text, special tokens of the template written out. Raises ValueError."""
    if template not in TEMPLATES:
        raise ValueError(f"data.template={template!r}: no such template; use one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[template](problem_text, tokenizer)
