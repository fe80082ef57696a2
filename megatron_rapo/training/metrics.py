"""Compute a step's scalars, by the names in TensorBoard and metrics.jsonl (monitor/scalars.py explains each)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_rapo.config import AlgorithmConfig
from megatron_rapo.monitor import RecordedCompletion
from megatron_rapo.scoring.objective import groups_with_signal
from megatron_rapo.scoring.packing import REWARD_SPLITS
from megatron_rapo.types import Group, Outcome, TrainingSequence


def rollout_scalars(groups: Sequence[Group], algorithm: AlgorithmConfig) -> dict[str, float]:
    """Return means of a rollout: rewards and their terms, verdicts, lengths."""
    rewards = [r for g in groups for r in g.rewards]
    verdicts = [v for g in groups for v in g.verdicts]
    completions = [c for g in groups for c in g.completions]
    count = len(completions)
    return {
        **{f"reward/term/{name}": sum(v for g in groups for v in g.terms[name]) / count for name in groups[0].terms},
        "reward/mean": sum(rewards) / count,
        "reward/pass_rate": sum(v.outcome is Outcome.CORRECT for v in verdicts) / count,
        "reward/format_rate": sum(v.formatted for v in verdicts) / count,
        **{
            f"reward/{outcome.value}": sum(v.outcome is outcome for v in verdicts) / count
            for outcome in Outcome
            if outcome is not Outcome.CORRECT  # reward/pass_rate
        },
        "reward/groups_without_signal": groups_with_signal(groups, algorithm).count(False) / len(groups),
        "rollout/completion_tokens": sum(len(c.token_ids) for c in completions) / count,
        "rollout/truncated": sum(c.truncated for c in completions) / count,
    }


def histograms(sampled: Sequence[Group], recorded: Sequence[RecordedCompletion]) -> dict[str, list[float]]:
    """Return the values of histograms: of all completions of the step, and of the tokens of the `recorded` ones."""
    return {
        "histogram/reward": [r for g in sampled for r in g.rewards],
        "histogram/completion_tokens": [float(len(c.token_ids)) for g in sampled for c in g.completions],
        "histogram/logprob_gap": [gap for each in recorded for gap in each.logprob_gap()],
        "histogram/log_rho": [log_rho for each in recorded for log_rho in each.log_rho()],
    }


def reference_scalars(sequences: Sequence[TrainingSequence]) -> dict[str, float]:
    """Return mean and minimum of phi over completions."""
    phi = [s.phi for s in sequences]
    return {"reference/phi_mean": sum(phi) / len(phi), "reference/phi_min": min(phi)}


def training_scalars(steps: Sequence[Mapping[str, float]], algorithm: AlgorithmConfig) -> dict[str, float]:
    """Return means over all tokens of a rollout's optimizer steps, and the mean of their gradient norms.

    policy/loss is the value of the objective. It is not the mean of the differentiated loss, whose penalty has the
    right gradient and can have another value (algo/divergences.py).
    """
    surrogate, entropy_bonus = _mean(steps, "surrogate"), _mean(steps, "entropy_bonus")
    kl_cost = algorithm.alpha * _mean(steps, "divergence")
    return {
        "policy/loss": -surrogate + kl_cost - entropy_bonus,
        "policy/surrogate": surrogate,
        "policy/kl_cost": kl_cost,
        "policy/entropy_bonus": entropy_bonus,
        "policy/kl": _mean(steps, "kl"),
        "policy/entropy": _mean(steps, "entropy"),
        "policy/clip_fraction": _mean(steps, "clipped"),
        "policy/staleness": _mean(steps, "staleness"),
        "policy/ratio_capped": _mean(steps, "ratio_capped"),
        "optimizer/grad_norm": sum(step["grad_norm"] for step in steps) / len(steps),
        "optimizer/lr": steps[-1]["lr"],
        "optimizer/skipped_steps": sum(step["skipped"] for step in steps),
    }


def estimator_scalars(steps: Sequence[Mapping[str, float]], algorithm: AlgorithmConfig) -> dict[str, float]:
    """Return how well sampled tokens estimate the objective: for all tokens, and split by reward.

    The effective sample size of weights w is (sum w)^2 / sum w^2, here divided by the number of tokens. Without a
    divergence there is no rho, and so none of its scalars.
    """
    scalars: dict[str, float] = {}
    for split in ("", *(f"/{name}" for name in REWARD_SPLITS)):
        share = _mean(steps, f"tokens{split}") if split else 1.0
        if share == 0 or not sum(step["num_tokens"] for step in steps):  # no token of this kind
            continue

        def mean(name: str, split: str = split, share: float = share) -> float:
            return _mean(steps, name + split) / share

        scalars[f"estimator/importance_ess{split}"] = mean("importance") ** 2 / mean("importance_squared")
        scalars[f"estimator/importance_capped{split}"] = mean("importance_capped")
        if algorithm.divergence != "none":
            scalars[f"estimator/kl{split}"] = mean("kl")
            scalars[f"estimator/rho_ess{split}"] = mean("rho") ** 2 / mean("rho_squared")
            scalars[f"estimator/log_rho_capped{split}"] = mean("log_rho_capped")
    return scalars


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float:
    """Return the mean over the tokens of all optimizer steps, from the mean of each. 0 if there are no tokens."""
    return sum(step[name] * step["num_tokens"] for step in steps) / max(1.0, sum(step["num_tokens"] for step in steps))
