"""Sections on what is to be learnt: the model, the problems, what an answer is worth, how it is examined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_rapo.config.section import FilePath, Section


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
    template: Literal["plain", "qwen-boxed", "abel", "chat"] = "qwen-boxed"
    """How a problem becomes a prompt (docs/data.md); chat is the tokenizer's own template."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Problems with a longer prompt are left out, counted and reported; none is ever cut."""


class RewardConfig(Section):
    """What the verifier's verdict is worth."""

    correct: float = 1.0
    """Reward of a completion whose boxed answer is right."""
    wrong: float = 0.0
    """Reward of a completion with a boxed answer that is not right (or not decided in time)."""
    unformatted: float = 0.0
    """Reward of a completion without a closed \\boxed{...}."""
    workers: int = Field(default=1, ge=1)
    """Verifier processes per training process."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Deadline of one answer, seconds; the worker is killed when it passes."""

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        if self.correct <= max(self.wrong, self.unformatted):
            raise ValueError(
                f"reward.correct={self.correct}: a right answer must earn more than any other "
                f"(wrong={self.wrong}, unformatted={self.unformatted}); raise reward.correct."
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest reward that a completion can have."""
        return min(self.wrong, self.unformatted), self.correct

    @property
    def middle(self) -> float:
        """Middle of the range: where what is watched is split into low and high rewards."""
        lowest, highest = self.range
        return (lowest + highest) / 2


class EvaluationConfig(Section):
    """Held-out problems, before the first and after the last step, and for `evaluate`."""

    data: FilePath
    """JSONL or Parquet file; columns and template as in [data]."""
    samples_per_problem: int = Field(default=16, ge=1)
    """Completions of each problem, n of the unbiased pass@k estimator."""
    k: tuple[int, ...] = Field(default=(1, 4, 16), strict=False)
    """The k of pass@k."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_completion_tokens: int = Field(default=1024, ge=1)
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
