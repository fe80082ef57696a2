"""Sections on what is to be learnt: the model, the problems, how it is examined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_rapo import choices
from megatron_rapo.choices import is_reference
from megatron_rapo.config.section import MAX_SIZE, MAX_STEPS, MAX_TOKENS, FilePath, Section

TEMPLATE_SUFFIXES = (".toml", ".jinja")


class ModelConfig(Section):
    """Name the policy. At step 0 it is the reference too."""

    path: FilePath
    """Load the policy and its tokenizer from this Hugging Face folder: config.json, safetensors weights, tokenizer
    files. The same weights are the reference."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """Choose the implementation of the layers. auto takes Transformer Engine where a GPU and the package are there and
    precision.dtype is bfloat16, and torch elsewhere.

    Needs: a GPU and Transformer Engine for transformer_engine.
    Excludes: transformer_engine excludes precision.dtype=float32 and batch.share_prompts.
    """
    recompute: Literal["none", "selective", "full"] = "none"
    """Recompute activations in the backward pass to save memory: none, only the attention core (selective), or whole
    layers (full).

    Also called: activation checkpointing, gradient checkpointing.
    """


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
        if self.template not in choices.TEMPLATES and not from_file:
            raise ValueError(
                f"data.template={self.template}: no such template; set it to one of {', '.join(choices.TEMPLATES)}, to "
                f"a file that ends in {' or '.join(TEMPLATE_SUFFIXES)}, or to your own as MODULE:NAME or FILE.py:NAME."
            )
        return self


class EvaluationConfig(Section):
    """Evaluate held-out problems before the first step, after the last one and between, and by `evaluate`."""

    data: FilePath
    """Evaluate on the held-out problems of this JSONL or Parquet file. Columns and template are those of [data]."""
    every_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Evaluate after every so many training steps. 0: evaluate only before the first step and after the last one.

    Unit: steps.
    Limits: not above run.steps.
    """
    samples_per_problem: int = Field(default=16, ge=1, le=MAX_SIZE)
    """Sample this many completions for each problem: the n of the unbiased pass@k estimator.

    Unit: completions.
    Needs: 1 where evaluation.temperature=0, since greedy samples are all the same.
    """
    k: tuple[int, ...] = Field(default=(1, 4, 16), strict=False)
    """Report pass@k for these k, and maj@k for those from 2 on.

    Unit: completions.
    Limits: each from 1 to evaluation.samples_per_problem.
    """
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sample the evaluation at this temperature. 0 is greedy decoding.

    Unit: none.
    Limits: 0, or at least 0.01.
    Needs: evaluation.samples_per_problem=1 for 0.
    """
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this value (nucleus sampling). 1 keeps all
    tokens.

    Unit: probability.
    """
    max_completion_tokens: int = Field(default=1024, ge=1, le=MAX_TOKENS)
    """Stop a completion of the evaluation at this length.

    Unit: tokens.
    Also called: max_new_tokens, max_tokens.
    """

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        if not self.k or min(self.k) < 1 or max(self.k) > self.samples_per_problem:
            raise ValueError(
                f"evaluation.k={list(self.k)}: each k must be between 1 and evaluation.samples_per_problem="
                f"{self.samples_per_problem}; change one of the two."
            )
        if 0 < self.temperature < 0.01:
            raise ValueError(
                f"evaluation.temperature={self.temperature}: vLLM would sample at 0.01; "
                "set evaluation.temperature=0 (greedy) or >= 0.01."
            )
        if self.temperature == 0 and self.samples_per_problem > 1:
            raise ValueError(
                f"evaluation.samples_per_problem={self.samples_per_problem}: greedy samples (temperature=0) are all "
                "the same; set evaluation.samples_per_problem=1 and evaluation.k=[1]."
            )
        return self
