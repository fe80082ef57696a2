"""pass@k on held-out problems, with the live engine of a run or with an engine of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

from megatron_rapo.config import EvaluationConfig
from megatron_rapo.rollout import Sampling
from megatron_rapo.sampling import Sampler, sampling_seed
from megatron_rapo.types import Group, Outcome, Prompt


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate, from `num_samples` samples, of the chance that one of k is correct.

    1 - C(n - c, k) / C(n, k). Source: arXiv 2107.03374 (Codex), equation 1.
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a policy scored."""

    pass_at: dict[int, float]  # k -> mean over problems
    problems: list[tuple[str, int]]  # id and number of right answers among samples_per_problem; ids may repeat
    samples_per_problem: int
    mean_completion_tokens: float
    truncated: float  # share of completions stopped by the length limit
    outcomes: dict[str, int]  # verdicts, counted

    @classmethod
    def of(cls, groups: Sequence[Group], k: Sequence[int]) -> Evaluation:
        """Summarise judged groups, all with the same number of completions."""
        n = len(groups[0].completions)
        correct = [sum(v.outcome is Outcome.CORRECT for v in g.verdicts) for g in groups]
        completions = [c for g in groups for c in g.completions]
        verdicts = [v.outcome for g in groups for v in g.verdicts]
        return cls(
            pass_at={each: sum(pass_at_k(n, c, each) for c in correct) / len(correct) for each in k},
            problems=[(g.prompt.problem.id, c) for g, c in zip(groups, correct, strict=True)],
            samples_per_problem=n,
            mean_completion_tokens=sum(len(c.token_ids) for c in completions) / len(completions),
            truncated=sum(c.truncated for c in completions) / len(completions),
            outcomes={outcome.value: verdicts.count(outcome) for outcome in Outcome},
        )

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**vars(self), "pass_at": {str(k): value for k, value in self.pass_at.items()}}
        path.write_text(json.dumps(content, indent=2) + "\n")


def evaluate(sampler: Sampler, prompts: Sequence[Prompt], settings: EvaluationConfig, *, seed: int) -> Evaluation:
    """Sample and judge `prompts` as `settings` says. Collective over the world."""
    sampling = Sampling(
        temperature=settings.temperature, top_p=settings.top_p, max_completion_tokens=settings.max_completion_tokens
    )
    completions = sampler.complete(
        prompts, settings.samples_per_problem, sampling, lambda i, j: sampling_seed(seed, -1, i, j)
    )
    return Evaluation.of(sampler.judge(prompts, completions), settings.k)
