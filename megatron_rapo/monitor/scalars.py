"""Every scalar that a run records, with its meaning and unit; the one list behind TensorBoard, file and docs."""

from __future__ import annotations

import difflib

SCALARS: dict[str, str] = {
    "reward/mean": "Mean reward of the step's completions.",
    "reward/pass_rate": "Completions whose answer the verifier found right, fraction.",
    "reward/format_rate": "Completions that hold a closed \\boxed{...}, fraction.",
    "reward/wrong": "Completions whose answer the verifier found wrong, fraction.",
    "reward/unevaluated": "Completions whose answer has the right value and arithmetic left to do, fraction.",
    "reward/no_answer": "Completions without an answer to judge, fraction.",
    "reward/unparsable": "Completions with an answer that is not mathematics, fraction.",
    "reward/timeout": "Completions that were not judged in time, by reward.timeout_s or budget_s, fraction.",
    "reward/groups_without_signal": "Groups whose rewards are all equal, so that their advantages are 0, fraction.",
    "policy/loss": "The objective that is minimised: -policy/surrogate + policy/kl_cost - policy/entropy_bonus.",
    "policy/surrogate": "Clipped surrogate with its importance weight, mean as algorithm.aggregation says.",
    "policy/kl_cost": "Of the objective: algorithm.alpha times the divergence, mean as algorithm.aggregation says.",
    "policy/entropy_bonus": "Of the objective: algorithm.beta times the entropy, mean as algorithm.aggregation says.",
    "policy/entropy": "True entropy of the policy over the whole vocabulary, mean over completion tokens, nats.",
    "policy/kl": "What algorithm.divergence reports (docs/estimators.md: value of), mean over completion tokens, nats.",
    "policy/staleness": "Mean |log pi - log pi_old| where it trained: steps that a rollout's tokens are behind, nats.",
    "policy/ratio_capped": "Tokens whose |log pi / pi_old| was beyond 20 nats, where it is held, fraction.",
    "policy/clip_fraction": "Completion tokens whose surrogate was clipped and so has no gradient, fraction.",
    "reference/phi_mean": "Mean exponent of the reference distribution; 1 leaves it as it is, 0 makes it uniform.",
    "reference/phi_min": "Lowest exponent of the reference distribution in the step.",
    "optimizer/grad_norm": "Global L2 norm of the gradient before clipping.",
    "optimizer/lr": "Learning rate of the step's last optimizer step.",
    "optimizer/skipped_steps": "Optimizer steps left out because loss or gradient were not finite.",
    "rollout/completion_tokens": "Mean length of a completion, tokens.",
    "rollout/truncated": "Completions that the length limit ended, fraction.",
    "rollout/groups_replaced": "Groups sampled beyond a step's, to replace some without signal, per group trained on.",
    "rollout/decode_steps": "Steps of the first engine in a rollout; each gives a token to all that is under way.",
    "rollout/prefix_cached": "Tokens before a completion that the first engine had computed for another, fraction.",
    "rollout/carried_groups": "Groups that were begun and not trained on, and go on in the next step.",
    "rollout/carried_tokens": "Completion tokens that there are of the groups that go on in the next step.",
    "rollout/dropped_groups": "Groups that were begun, not waited for and thrown away.",
    "rollout/dropped_tokens": "Completion tokens that were sampled in the step and thrown away.",
    "rollout/stale_tokens": "Tokens trained on that were sampled from weights of an earlier step, fraction.",
    "rollout/stale_steps": "How many steps old the weights of those tokens are, mean over them.",
    "rollout/stale_logprob_gap": "Mean |engine - trainer| of the others: how far the policy has moved since, nats.",
    "rollout/logprob_gap_mean": "Mean |engine - trainer| log-probability of tokens of the step's own weights, nats.",
    "rollout/logprob_gap_max": "Largest |engine - trainer| log-probability of one of the same tokens, nats.",
    "reshard/transfer_s": "Of resharding: copying, sending and receiving weights on the first process, seconds.",
    "reshard/engine_s": "Of resharding: packing by the engine, where it packs its weights, seconds.",
    "reshard/proof_s": "Of resharding: digests of all tensors on both sides, and their comparison, seconds.",
    "reshard/copied_mib": "Weights copied within the first process, MiB.",
    "reshard/sent_mib": "Weights that the first process sent to others, MiB.",
    "reshard/received_mib": "Weights that the first process got from others, MiB.",
    "reshard/transfer_gb_per_s": "What the first process copied, sent and received over reshard/transfer_s, GB/s.",
    "reshard/parity_mean": "Mean |engine - trainer| log-probability after resharding, on fixed prompts, nats.",
    "reshard/parity_max": "Largest |engine - trainer| log-probability after resharding, on fixed prompts, nats.",
    "reshard/parity_trainer_fp8": "Of it: mean |trainer - trainer without FP8|, where the trainer is in FP8, nats.",
    "reshard/parity_engine_fp8": "Of it: mean |trainer with the engine's FP8 weights - with its own|, nats.",
    "reshard/parity_kernels": "Of it: mean |engine - trainer with its weights|: kernels, FP8 of activations, nats.",
    "throughput/tokens_per_s": "Completion tokens of all processes over the whole step's duration, tokens per second.",
    "seconds/step": "Duration of the whole step, seconds.",
}

_ESTIMATOR = {
    "kl": "What algorithm.divergence reports (docs/estimators.md: value of), mean over completion tokens, nats.",
    "log_rho_p01": "First percentile of log rho = log pihat_ref - log pi over sampled tokens, before training, nats.",
    "log_rho_p50": "Median of log rho over sampled tokens, before training, nats.",
    "log_rho_p99": "99th percentile of log rho over sampled tokens, before training, nats.",
    "rho_ess": "Effective sample size of rho = pihat_ref / pi over the number of tokens; 1 is best.",
    "importance_ess": "Effective sample size of pi / engine, not truncated, over the number of tokens; 1 is best.",
    "log_rho_capped": "Tokens whose |log rho| was beyond algorithm.log_rho_cap, fraction.",
    "importance_capped": "Tokens whose importance weight was truncated at algorithm.importance_cap, fraction.",
    "kl_gradient_share": "|gradient of the penalty| / (that + |gradient of the rest|), a micro-batch of each rank.",
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
    "reward/term/": "Mean of one term of the reward; reward/mean is the sum of them.",
    "eval/pass@": "Held-out problems: chance that one of k samples is right (unbiased), mean over problems.",
    "eval/maj@": "Held-out problems: chance that the most frequent answer of k samples is right, mean over problems.",
    "eval/truncated": "Held-out problems: completions that the length limit ended, fraction.",
    "eval/completion_tokens": "Held-out problems: mean length of a completion, tokens.",
    "eval/": "Measured on held-out problems.",
}
"""Groups whose names depend on the run: phases, terms of the reward, and what is evaluated."""


HISTOGRAMS = {
    "histogram/reward": "Rewards of the step's completions.",
    "histogram/completion_tokens": "Lengths of the step's completions, tokens.",
    "histogram/logprob_gap": "Engine - trainer log-probability of each token of the recorded completions, nats.",
    "histogram/log_rho": "log rho = log pihat_ref - log pi of each token of the recorded completions, nats.",
}
"""Every distribution that a run shows; the last two at steps whose completions are recorded."""


def describe(name: str) -> str:
    """What the scalar `name` means, with its unit. Raises ValueError for a name that nobody declared."""
    if name in SCALARS:
        return SCALARS[name]
    for prefix, meaning in _OPEN_PREFIXES.items():
        if name.startswith(prefix) and name != prefix:
            return meaning
    near = difflib.get_close_matches(name, SCALARS, n=1)
    fix = f"did you mean {near[0]}?" if near else "declare it in megatron_rapo/monitor/scalars.py."
    raise ValueError(f"scalar {name}: no such scalar; {fix}")
