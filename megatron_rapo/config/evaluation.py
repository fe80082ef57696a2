"""The [evaluation] section."""

from __future__ import annotations

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_SIZE, MAX_STEPS, MAX_TOKENS, FilePath, Section


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
