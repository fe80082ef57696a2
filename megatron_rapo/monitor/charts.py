"""The charts: which scalars TensorBoard's custom-scalars page and the report show together."""

from __future__ import annotations

from megatron_rapo.types import Outcome

CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Learning": {
        "Reward": ("reward/mean", "reward/pass_rate"),
        "Entropy": ("policy/entropy",),
        "KL": ("policy/kl",),
        "Completion length": ("rollout/completion_tokens",),
        "phi": ("reference/phi_mean", "reference/phi_min"),
        "Held-out problems": ("eval/pass@",),
        "Majority on held-out problems": ("eval/maj@",),
    },
    "Verifier": {
        "Verdicts": ("reward/pass_rate", *(f"reward/{o.value}" for o in Outcome if o is not Outcome.CORRECT)),
        "Format and length": ("reward/format_rate", "rollout/truncated"),
        "Groups": ("reward/groups_without_signal", "rollout/groups_replaced"),
        "Terms of the reward": ("reward/term/",),
    },
    "Optimisation": {
        "Gradient norm": ("optimizer/grad_norm",),
        "Objective": ("policy/surrogate", "policy/kl_cost", "policy/entropy_bonus"),
        "Clipped": ("policy/clip_fraction", "policy/ratio_capped"),
        "Learning rate": ("optimizer/lr",),
    },
    "Engine and trainer": {
        "Log-probability gap": ("rollout/logprob_gap_mean", "rollout/logprob_gap_max"),
        "Gap on fixed prompts": ("reshard/parity_mean", "reshard/parity_max"),
        "Staleness": ("policy/staleness",),
        "Tokens of earlier weights": ("rollout/stale_tokens",),
        "Gap of tokens of earlier weights": ("rollout/stale_logprob_gap",),
        "Importance weights": ("estimator/importance_ess", "estimator/importance_capped"),
    },
    "Estimators": {
        "log rho": ("estimator/log_rho_p01", "estimator/log_rho_p50", "estimator/log_rho_p99"),
        "Effective sample size of rho": ("estimator/rho_ess",),
        "Share of the gradient": ("estimator/kl_gradient_share",),
    },
    "Time": {
        "Seconds by phase": ("seconds/",),
        "Throughput": ("throughput/tokens_per_s",),
        "Tokens that a rollout left": ("rollout/carried_tokens", "rollout/dropped_tokens"),
        "Steps of an engine in a rollout": ("rollout/decode_steps",),
        "Prefix cache": ("rollout/prefix_cached",),
        "Resharding": ("reshard/transfer_s", "reshard/engine_s", "reshard/proof_s"),
        "Resharding, GB/s": ("reshard/transfer_gb_per_s",),
    },
}
"""Section -> chart -> scalars. A name that ends with / or @ stands for all scalars that begin with it."""
GROUPS = (
    "reward",
    "eval",
    "policy",
    "rollout",
    "optimizer",
    "reference",
    "estimator",
    "reshard",
    "throughput",
    "seconds",
)
"""The first parts of the scalars' names, in display order."""
OPEN_ENDS = ("/", "@")
