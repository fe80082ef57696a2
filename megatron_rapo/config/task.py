"""Sections on what is to be learnt: the model, the problems, how it is examined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_rapo import choices
from megatron_rapo.choices import is_reference
from megatron_rapo.config.section import MAX_SIZE, MAX_STEPS, MAX_TOKENS, FilePath, Section

TEMPLATE_SUFFIXES = (".toml", ".jinja")


class ModelConfig(Section):
    """The policy; at step 0 it is the reference too."""

    path: FilePath
    """Hugging Face model folder: config.json, safetensors weights, tokenizer."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """Layer implementation; auto takes Transformer Engine on a GPU where it is installed, torch elsewhere."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none, the attention core only, or whole layers."""


class DataConfig(Section):
    """The training problems."""

    train: FilePath
    """JSONL or Parquet file with one problem a row."""
    problem_field: str = "problem"
    """Column of the problem's text."""
    answer_field: str = "answer"
    """Column of the reference answer."""
    template: str = "qwen-boxed"
    """How a problem becomes a prompt (docs/data.md): plain, qwen-boxed, abel, chat (the tokenizer's own template), a
    file of your own that ends in .toml or .jinja, or a function of your own (docs/extending.md)."""
    template_digest: str = ""
    """Digest of a template of your own, filled in when a run begins; a template with another one is refused."""
    instruction: str | None = None
    """Text on a line of its own after the problem, instead of the template's; empty for none."""
    system: str | None = None
    """System message, instead of the template's own."""
    max_prompt_tokens: int = Field(default=1024, ge=1, le=MAX_TOKENS)
    """Problems with a longer prompt are left out, counted and reported; none is ever cut."""

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
    """Held-out problems: before the first and after the last step of training, meanwhile, and for `evaluate`."""

    data: FilePath
    """JSONL or Parquet file; columns and template as in [data]."""
    every_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Steps of training between evaluations; 0: before the first step and after the last one only."""
    samples_per_problem: int = Field(default=16, ge=1, le=MAX_SIZE)
    """Completions of each problem, n of the unbiased pass@k estimator."""
    k: tuple[int, ...] = Field(default=(1, 4, 16), strict=False)
    """The k of pass@k and, from 2 on, of maj@k."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_completion_tokens: int = Field(default=1024, ge=1, le=MAX_TOKENS)
    """Longest completion, tokens."""

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
