"""The [data] section."""

from __future__ import annotations

from pydantic import Field, model_validator

from megatron_rapo import builtin_names
from megatron_rapo.builtin_names import is_reference
from megatron_rapo.config.section import MAX_TOKENS, FilePath, Section

TEMPLATE_SUFFIXES = (".toml", ".jinja")


class DataConfig(Section):
    """Name the training problems and the template of their prompts."""

    train: FilePath
    """Train on the problems of this JSONL or Parquet file, which has one problem in each row."""
    problem_field: str = "problem"
    """Name the column that holds the problem's text."""
    answer_field: str = "answer"
    """Name the column that holds the reference answer."""
    template: str = "qwen-boxed"
    """Turn a problem into a prompt with this template (docs/data.md). Choose plain, qwen-boxed, abel or chat (the
    tokenizer's own chat template), or name a file or function of your own (docs/extending.md).

    Limits: the name of a template, a file that ends in .toml or .jinja, or MODULE:NAME or FILE.py:NAME.
    """
    template_digest: str = ""
    """Refuse a template file of your own that has another digest than this one. A run fills it in when it begins; you
    need not set it.

    Default: empty, for no check.
    """
    instruction: str | None = None
    """Put this text on a line of its own after the problem, instead of the template's instruction. Empty text stands
    for no instruction.

    Default: the template's instruction.
    """
    system: str | None = None
    """Use this system message instead of the template's.

    Default: the template's system message.
    """
    max_prompt_tokens: int = Field(default=1024, ge=1, le=MAX_TOKENS)
    """Leave out problems whose prompt is longer. They are counted and reported; no prompt is ever cut.

    Unit: tokens.
    Needs: batch.tokens_per_microbatch of at least this plus rollout.max_completion_tokens.
    """

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        from_file = self.template.endswith(TEMPLATE_SUFFIXES) or is_reference(self.template)
        if self.template not in builtin_names.TEMPLATES and not from_file:
            raise ValueError(
                f"data.template={self.template}: no such template; set it to one of "
                f"{', '.join(builtin_names.TEMPLATES)}, to a file that ends in {' or '.join(TEMPLATE_SUFFIXES)}, or to "
                "your own as MODULE:NAME or FILE.py:NAME."
            )
        return self
