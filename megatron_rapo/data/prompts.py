"""From problems to token ids, leaving out what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_rapo.data.rows import DataError
from megatron_rapo.data.templates import Template, render
from megatron_rapo.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """What can be trained on, and what cannot."""

    prompts: tuple[Prompt, ...]
    too_long: tuple[Problem, ...]  # problems whose prompt is above the limit; none is ever cut


def build_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: Template, max_prompt_tokens: int
) -> PromptSet:
    """Render and tokenise `problems`, in their order.

    The tokens are those of the rendered text, special tokens in it recognised, and nothing is ever put
    at its end. In front, all templates but `chat` get the beginning-of-sequence token if the tokenizer
    adds one by itself (Llama does: the model has never seen a text without it; Qwen does not) and the text does not
    begin with it; a chat template writes its own. Raises DataError when no prompt is within
    `max_prompt_tokens`.
    """
    if not problems:
        raise DataError("no problems to build prompts from; name a data set with at least one.")
    texts = render(template, [problem.text for problem in problems], tokenizer)
    start = [] if template.chat else _start_tokens(tokenizer)
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    rows = [
        (problem, text, tuple(ids) if ids[:1] == start else (*start, *ids))
        for problem, text, ids in zip(problems, texts, encoded, strict=True)
    ]
    prompts = tuple(
        Prompt(problem=problem, text=text, token_ids=ids)
        for problem, text, ids in rows
        if len(ids) <= max_prompt_tokens
    )
    if not prompts:
        shortest = min(len(ids) for _, _, ids in rows)
        raise DataError(
            f"data.max_prompt_tokens={max_prompt_tokens}: each of the {len(rows)} prompts is longer, the shortest has "
            f"{shortest} tokens; set data.max_prompt_tokens >= {shortest}."
        )
    too_long = tuple(problem for problem, _, ids in rows if len(ids) > max_prompt_tokens)
    return PromptSet(prompts=prompts, too_long=too_long)


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, if the tokenizer puts it before every text."""
    bos, ids = tokenizer.bos_token_id, tokenizer("")["input_ids"]
    return [bos] if bos is not None and ids[:1] == [bos] else []
