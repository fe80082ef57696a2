"""Sample and judge held-out problems, part by part, with a run's live engine or an engine of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from megatron_rapo.config import Config, EvaluationConfig
from megatron_rapo.data import PromptSet
from megatron_rapo.evaluation.samples import ProblemSamples, SampledWith
from megatron_rapo.evaluation.scores import ProblemScore, Scores
from megatron_rapo.rewards.verdict_summary import Judged
from megatron_rapo.rollout import Sampling
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.verifier import extractor

WAVES = 4
"""A part has this many times `rollout.max_concurrent` completions for each engine. A kill loses at most one part. But
engines idle while the last completions of a part end, so parts should not be small."""
EVALUATION = -1  # replaces the training step in seeds, so that a model always gives the same samples


@dataclass(frozen=True)
class HeldOut:
    """The problems and settings of an evaluation."""

    config: Config
    settings: EvaluationConfig
    prompts: PromptSet

    def sampled_with(self, weights: str) -> SampledWith:
        """Return everything that the samples depend on. `weights` is a digest of the model."""
        asked = [[p.problem.id, p.problem.text, p.problem.answer, p.token_ids] for p in self.prompts.prompts]
        return SampledWith(
            weights=weights,
            problems=hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest(),
            template=self.config.data.template,
            stop=list(self.config.rollout.stop or ()),
            stop_token_ids=list(self.config.rollout.stop_token_ids),
            dtype=self.config.precision.dtype,
            fp8=self.config.rollout.fp8,
            samples_per_problem=self.settings.samples_per_problem,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            max_completion_tokens=self.settings.max_completion_tokens,
            seed=self.config.run.seed,
            answer=self.config.reward.answer,
        )

    def parts(self, sampler: Sampler, *, start: int = 0) -> Iterator[list[ProblemSamples]]:
        """Yield the sampled problems from `start` on, in order. Collective: every rank must consume all parts."""
        prompts, n, settings = self.prompts.prompts, self.settings.samples_per_problem, self.settings
        sampling = Sampling(
            temperature=settings.temperature, top_p=settings.top_p, max_completion_tokens=settings.max_completion_tokens
        )
        extract = extractor(self.config.reward.answer)
        in_part = problems_in_part(self.config.rollout.max_concurrent, n, sampler.engine.num_replicas)
        for first in range(start, len(prompts), in_part):
            chosen = prompts[first : first + in_part]
            seeds = [[self._seed(first + i, j) for j in range(n)] for i in range(len(chosen))]
            sampled = sampler.complete(chosen, n, sampling, lambda i, j, of=seeds: of[i][j])  # type: ignore[misc]
            groups = sampler.verify(sampled)
            yield [ProblemSamples.of(first + i, group, seeds[i], extract) for i, group in enumerate(groups)]

    def _seed(self, problem: int, sample: int) -> int:
        return sampling_seed(self.config.run.seed, EVALUATION, problem, sample)

    def scores(self, problems: Sequence[ProblemScore], *, model: str, weights: str) -> Scores:
        """Return the scores of all problems."""
        return Scores.of(
            problems,
            self.settings.samples_per_problem,
            self.settings.k,
            model=model,
            data=str(self.settings.data),
            left_out=len(self.prompts.too_long),
            sampled_with=asdict(self.sampled_with(weights)),
        )

    def judged(self, scores: Scores) -> Judged:
        """Return the verdicts in `scores`, with the setting that truncated completions."""
        return Judged(
            verdicts=scores.verdicts,
            truncated=sum(problem.truncated for problem in scores.problems),
            limit=f"evaluation.max_completion_tokens={self.settings.max_completion_tokens}",
        )


def problems_in_part(max_concurrent: int, samples_per_problem: int, num_replicas: int) -> int:
    """Return the number of problems in a part, see WAVES."""
    return max(1, WAVES * max_concurrent // samples_per_problem) * num_replicas
