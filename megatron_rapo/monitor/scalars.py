"""Declare every scalar that a run records, with its meaning and unit. Metrics files, TensorBoard and docs use it."""

from __future__ import annotations

import difflib

SCALARS: dict[str, str] = {
    "reward/mean": "Mean reward of the step's completions.",
    "reward/pass_rate": "Completions whose answer the verifier found right, fraction.",
    "reward/format_rate": "Completions that give an answer in the form of reward.answer, fraction.",
    "reward/wrong": "Completions whose answer the verifier found wrong, fraction.",
    "reward/unevaluated": "Completions whose answer leaves arithmetic unfinished, fraction.",
    "reward/no_answer": "Completions without an answer to judge, fraction.",
    "reward/unparsable": "Completions with an answer that is not mathematics, fraction.",
    "reward/timeout": "Completions that were not judged in time, by reward.timeout_s or budget_s, fraction.",
    "reward/groups_without_signal": "Groups with equal rewards up to rounding, so that advantages are 0, fraction.",
    "policy/loss": "The objective that is minimised: -policy/surrogate + policy/kl_cost - policy/entropy_bonus.",
    "policy/surrogate": "Clipped surrogate with its importance weight, averaged by algorithm.aggregation.",
    "policy/kl_cost": "In the objective: algorithm.alpha times the divergence, averaged by algorithm.aggregation.",
    "policy/entropy_bonus": "In the objective: algorithm.beta times the entropy, averaged by algorithm.aggregation.",
    "policy/entropy": "True entropy of the policy over the whole vocabulary, mean over completion tokens, nats.",
    "policy/kl": "The divergence as algorithm.divergence reports it (docs/estimators.md), mean over tokens, nats.",
    "policy/staleness": "Mean |log pi - log pi_old| over trained tokens: the policy's distance from pi_old, nats.",
    "policy/ratio_capped": "Tokens whose |log pi / pi_old| was clamped at 20 nats, fraction.",
    "policy/clip_fraction": "Completion tokens whose surrogate was clipped, so that it has no gradient, fraction.",
    "reference/phi_mean": "Mean exponent of the reference distribution; 1 leaves it unchanged, 0 makes it uniform.",
    "reference/phi_min": "Lowest exponent of the reference distribution in the step.",
    "optimizer/grad_norm": "Global L2 norm of the gradient before clipping.",
    "optimizer/lr": "Learning rate of the step's last optimizer step.",
    "optimizer/skipped_steps": "Optimizer steps skipped because loss or gradient was not finite.",
    "rollout/completion_tokens": "Mean length of a completion, tokens.",
    "rollout/truncated": "Completions that the length limit ended, fraction.",
    "rollout/groups_replaced": "Extra groups sampled to replace groups without signal, per group trained on.",
    "rollout/decode_steps": "Steps of the first engine in a rollout; each adds a token to all running completions.",
    "rollout/prefix_cached": "Prompt tokens that the first engine took from its prefix cache, fraction.",
    "rollout/carried_groups": "Groups that were begun but not trained on, and continue in the next step.",
    "rollout/carried_tokens": "Completion tokens sampled so far for the groups that continue in the next step.",
    "rollout/dropped_groups": "Groups that were begun but dropped without waiting for them.",
    "rollout/dropped_tokens": "Completion tokens that were sampled in the step and dropped.",
    "rollout/stale_tokens": "Trained tokens that were sampled from weights of an earlier step, fraction.",
    "rollout/stale_steps": "Age of the weights of those tokens, mean over them, steps.",
    "rollout/stale_logprob_gap": "Mean |engine - trainer| log-probability of these tokens: the policy's change, nats.",
    "rollout/logprob_gap_mean": "Mean |engine - trainer| log-probability of tokens from the step's own weights, nats.",
    "rollout/logprob_gap_max": "Largest |engine - trainer| log-probability of tokens from the step's weights, nats.",
    "reshard/transfer_s": "Part of resharding: copying, sending and receiving weights on the first process, seconds.",
    "reshard/engine_s": "Part of resharding: packing of weights by the engine, if it packs them, seconds.",
    "reshard/proof_s": "Part of resharding: digests of all tensors on both sides, and their comparison, seconds.",
    "reshard/copied_mib": "Weights copied within the first process, MiB.",
    "reshard/sent_mib": "Weights that the first process sent to others, MiB.",
    "reshard/received_mib": "Weights that the first process received from others, MiB.",
    "reshard/transfer_gb_per_s": "Data that the first process copied, sent and received, per reshard/transfer_s, GB/s.",
    "reshard/parity_mean": "Mean |engine - trainer| log-probability after resharding, on fixed prompts, nats.",
    "reshard/parity_max": "Largest |engine - trainer| log-probability after resharding, on fixed prompts, nats.",
    "reshard/parity_trainer_fp8": "Part of the gap: mean |trainer - trainer without FP8|, nats.",
    "reshard/parity_engine_fp8": "Part of the gap: mean |trainer with the engine's FP8 weights - with its own|, nats.",
    "reshard/parity_kernels": "Part of the gap: mean |engine - trainer with its weights| (kernels, activations), nats.",
    "throughput/tokens_per_s": "Completion tokens of all processes per duration of the whole step, tokens per second.",
    "seconds/step": "Duration of the whole step, seconds.",
}

_ESTIMATOR = {
    "kl": "The divergence as algorithm.divergence reports it (docs/estimators.md), mean over tokens, nats.",
    "log_rho_p01": "First percentile of log rho = log pihat_ref - log pi over sampled tokens, before training, nats.",
    "log_rho_p50": "Median of log rho over sampled tokens, before training, nats.",
    "log_rho_p99": "99th percentile of log rho over sampled tokens, before training, nats.",
    "rho_ess": "Effective sample size of rho = pihat_ref / pi over the number of tokens; 1 is best.",
    "importance_ess": "Effective sample size of pi / engine, not truncated, over the number of tokens; 1 is best.",
    "log_rho_capped": "Tokens whose |log rho| was clamped at algorithm.log_rho_cap, fraction.",
    "importance_capped": "Tokens whose importance weight was truncated at algorithm.importance_cap, fraction.",
    "kl_gradient_share": "|gradient of the penalty| / (that + |gradient of the rest|), one micro-batch per rank.",
}
_SPLITS = {
    "": "",
    "/low_reward": " Completions that earned less than the middle of the reward's range.",
    "/high_reward": " Completions that earned the middle of the reward's range or more.",
}
SCALARS |= {
    f"estimator/{name}{split}": meaning + whose
    for name, meaning in _ESTIMATOR.items()
    for split, whose in _SPLITS.items()
}

_OPEN_PREFIXES = {
    "seconds/": "Duration of the phase in this step, seconds.",
    "reward/term/": "Mean of one term of the reward; reward/mean is the sum of all terms.",
    "eval/pass@": "Held-out problems: chance that one of k samples is right (unbiased), mean over problems.",
    "eval/maj@": "Held-out problems: chance that the most frequent answer of k samples is right, mean over problems.",
    "eval/truncated": "Held-out problems: completions that the length limit ended, fraction.",
    "eval/completion_tokens": "Held-out problems: mean length of a completion, tokens.",
    "eval/": "Measured on held-out problems.",
}
"""Prefixes of names that depend on the run: phases, reward terms, evaluations."""

HISTOGRAMS = {
    "histogram/reward": "Rewards of the step's completions.",
    "histogram/completion_tokens": "Lengths of the step's completions, tokens.",
    "histogram/logprob_gap": "Engine - trainer log-probability of each token of the recorded completions, nats.",
    "histogram/log_rho": "log rho = log pihat_ref - log pi of each token of the recorded completions, nats.",
}
"""All distributions that a run shows; the last two only at steps whose completions are recorded."""


def describe(name: str) -> str:
    """Return the meaning of the scalar `name`, with its unit. Raises ValueError for an undeclared name."""
    if name in SCALARS:
        return SCALARS[name]
    for prefix, meaning in _OPEN_PREFIXES.items():
        if name.startswith(prefix) and name != prefix:
            return meaning
    near = difflib.get_close_matches(name, SCALARS, n=1)
    fix = f"did you mean {near[0]}?" if near else "declare it in megatron_rapo/monitor/scalars.py."
    raise ValueError(f"scalar {name}: no such scalar; {fix}")
