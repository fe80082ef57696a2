"""pass@k on held-out problems, with the live engine of a run or with an engine of its own."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_rapo.config import EvaluationConfig
from megatron_rapo.monitor import Console
from megatron_rapo.rollout import Sampling
from megatron_rapo.sampling import Sampler, sampling_seed
from megatron_rapo.scores import Comparison, Evaluation, SavedEvaluation
from megatron_rapo.types import Prompt


def evaluate(sampler: Sampler, prompts: Sequence[Prompt], settings: EvaluationConfig, *, seed: int) -> Evaluation:
    """Sample and verify completions of `prompts` as `settings` says. Collective over the world."""
    sampling = Sampling(
        temperature=settings.temperature, top_p=settings.top_p, max_completion_tokens=settings.max_completion_tokens
    )
    completions = sampler.complete(
        prompts, settings.samples_per_problem, sampling, lambda i, j: sampling_seed(seed, -1, i, j)
    )
    return Evaluation.of(sampler.verify(prompts, completions), settings.k)


def show(console: Console, evaluation: SavedEvaluation) -> None:
    """The scores as tables; with a comparison, the base's beside them and the problems that were gained and lost."""
    interval = f"{evaluation.bootstrap.level:.0%} interval"
    rows = [
        [f"pass@{k}", f"{value:.3f}", "{:.3f} to {:.3f}".format(*evaluation.pass_at_interval[k])]
        for k, value in evaluation.pass_at.items()
    ]
    rows.append(["completion tokens", f"{evaluation.mean_completion_tokens:.1f}", ""])
    rows.append(["truncated", f"{evaluation.truncated:.3f}", ""])
    samples = f"{len(evaluation.problems)} problems, {evaluation.samples_per_problem} samples each"
    console.table(f"{evaluation.model} on {samples}", ["", "score", interval], rows)
    if evaluation.comparison:
        _show_comparison(console, evaluation, evaluation.comparison, interval)


def _show_comparison(console: Console, evaluation: SavedEvaluation, comparison: Comparison, interval: str) -> None:
    rows = []
    for k, value in evaluation.pass_at.items():
        low, high = comparison.difference_interval[k]
        numbers = [f"{comparison.pass_at[k]:.3f}", f"{value:.3f}", _signed(comparison.difference[k])]
        rows.append([f"pass@{k}", *numbers, f"{_signed(low)} to {_signed(high)}"])
    console.table(
        f"compared with {comparison.model} ({comparison.file})", ["", "base", "this", "difference", interval], rows
    )
    solved = {
        "by this model only": comparison.only_this,
        "by the base only (lost)": comparison.lost,
        "by both": comparison.both,
        "by neither": comparison.neither,
    }
    rows = [[who, str(len(ids))] for who, ids in solved.items()]
    base_samples, samples = comparison.samples_per_problem, evaluation.samples_per_problem
    chances = f"in {samples} samples" if samples == base_samples else f"in {samples} samples, the base's {base_samples}"
    console.table(f"solved at least once {chances}", ["", "problems"], rows)


def _signed(difference: float) -> str:
    return f"{round(difference, 3) + 0.0:+.3f}"  # + 0.0 turns -0.0, which would be shown as -0.000, into 0.0
