"""A step's numbers, by the names that TensorBoard and metrics.jsonl show (monitor/scalars.py says what each means)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_rapo.config import AlgorithmConfig
from megatron_rapo.types import Group, Outcome, TrainingSequence


def rollout_scalars(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, verdicts and lengths of a rollout."""
    rewards = [r for g in groups for r in g.rewards]
    verdicts = [v for g in groups for v in g.verdicts]
    completions = [c for g in groups for c in g.completions]
    count = len(completions)
    return {
        "reward/mean": sum(rewards) / count,
        "reward/pass_rate": sum(v.outcome is Outcome.CORRECT for v in verdicts) / count,
        "reward/format_rate": sum(v.formatted for v in verdicts) / count,
        "reward/no_answer": sum(v.outcome is Outcome.NO_ANSWER for v in verdicts) / count,
        "reward/unparsable": sum(v.outcome is Outcome.UNPARSABLE for v in verdicts) / count,
        "reward/timeout": sum(v.outcome is Outcome.TIMEOUT for v in verdicts) / count,
        "reward/groups_without_signal": sum(not g.has_signal for g in groups) / len(groups),
        "rollout/completion_tokens": sum(len(c.token_ids) for c in completions) / count,
        "rollout/truncated": sum(c.truncated for c in completions) / count,
    }


def reference_scalars(sequences: Sequence[TrainingSequence]) -> dict[str, float]:
    """phi, over completions."""
    phi = [s.phi for s in sequences]
    return {"reference/phi_mean": sum(phi) / len(phi), "reference/phi_min": min(phi)}


def training_scalars(steps: Sequence[Mapping[str, float]], algorithm: AlgorithmConfig) -> dict[str, float]:
    """Means over the optimizer steps of a rollout; the learning rate is the last one's.

    policy/loss is the objective's value and not the mean of what was differentiated: that has the penalty's gradient,
    which for an estimate is not the gradient of its value (algo/divergences.py).
    """

    def mean(name: str) -> float:
        return sum(step[name] for step in steps) / len(steps)

    surrogate, kl_cost, entropy_bonus = mean("surrogate"), algorithm.alpha * mean("divergence"), mean("entropy_bonus")
    return {
        "policy/loss": -surrogate + kl_cost - entropy_bonus,
        "policy/surrogate": surrogate,
        "policy/kl_cost": kl_cost,
        "policy/entropy_bonus": entropy_bonus,
        "policy/kl": mean("kl"),
        "policy/entropy": mean("entropy"),
        "policy/clip_fraction": mean("clipped"),
        "optimizer/grad_norm": mean("grad_norm"),
        "optimizer/lr": steps[-1]["lr"],
    }


def estimator_scalars(steps: Sequence[Mapping[str, float]], algorithm: AlgorithmConfig) -> dict[str, float]:
    """How well sampled tokens estimate what the divergence is about: in all, and by reward. None without a divergence.

    The effective sample size of weights w is (sum w)^2 / sum w^2; here as a share of the number of tokens.
    """
    if algorithm.divergence == "none":
        return {}
    scalars: dict[str, float] = {}
    for split in ("", "/low_reward", "/high_reward"):
        sums = {name: sum(step[name + split] for step in steps) for name in _ESTIMATOR_SUMS}
        tokens = sum(step["tokens" + split] if split else 1.0 for step in steps)
        if tokens == 0:  # no completion of this kind
            continue
        scalars |= {
            f"estimator/kl{split}": sums["kl"] / tokens,
            f"estimator/rho_ess{split}": sums["rho"] ** 2 / (sums["rho_squared"] * tokens),
            f"estimator/importance_ess{split}": sums["importance"] ** 2 / (sums["importance_squared"] * tokens),
            f"estimator/log_rho_capped{split}": sums["log_ratio_capped"] / tokens,
            f"estimator/importance_capped{split}": sums["importance_capped"] / tokens,
        }
    return scalars


_ESTIMATOR_SUMS = (
    "kl",
    "rho",
    "rho_squared",
    "importance",
    "importance_squared",
    "log_ratio_capped",
    "importance_capped",
)
