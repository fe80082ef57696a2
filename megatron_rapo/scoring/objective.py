"""Apply the [algorithm] section: from judged groups to training sequences, and from scored micro-batches to the loss.

`algo/` has the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from megatron_rapo.algo import LossInputs, LossSettings, LossSums, group_advantages, have_signal, phi_of, rapo_loss
from megatron_rapo.config import AlgorithmConfig, Config, RewardConfig
from megatron_rapo.scoring.objective_registry import advantage_of, divergence_of, phi_shape_of
from megatron_rapo.scoring.output_head import TokenScores
from megatron_rapo.scoring.packing import PackedBatch
from megatron_rapo.types import Group, TrainingSequence


def to_sequences(groups: Sequence[Group], config: Config) -> list[TrainingSequence]:
    """Build the sequences of one optimizer step, each with its advantage, weight and reference exponent."""
    settings = config.algorithm
    rewards_PG, trained_PG, baseline_PG = _rewards(groups, settings)
    advantages = group_advantages(rewards_PG, advantage_of(settings.advantage), trained_PG, baseline_PG)
    exponents = reference_exponents(rewards_PG, settings, config.reward).flatten()
    completions = [(g, c, r) for g in groups for c, r in zip(g.completions, g.rewards, strict=True)]
    kept = trained_PG.flatten().tolist()
    lengths = [len(c.token_ids) for _, c, _ in completions]
    mean_length = sum(n for n, k in zip(lengths, kept, strict=True) if k) / max(1, sum(kept))
    return [
        TrainingSequence(
            token_ids=np.concatenate([np.asarray(group.prompt.token_ids, np.int32), completion.token_ids]),
            prompt_length=len(group.prompt.token_ids),
            engine_logprobs=completion.logprobs,
            advantage=advantage,
            phi=phi,
            reward=reward,
            # The loss is divided by the number of tokens. With these weights it is the mean over sequences.
            weight=mean_length / length if settings.aggregation == "sequence" else 1.0,
            num_stale=completion.num_stale(group.weight_version),
            in_loss=in_loss,
        )
        for (group, completion, reward), advantage, phi, length, in_loss in zip(
            completions, advantages.flatten().tolist(), exponents.tolist(), lengths, kept, strict=True
        )
    ]


def groups_with_signal(groups: Sequence[Group], settings: AlgorithmConfig) -> list[bool]:
    """Return for each group whether some completion has an advantage other than 0 in `to_sequences`.

    Dynamic sampling, the choice of a step's groups and reward/groups_without_signal all use this definition.
    """
    return have_signal(*_rewards(groups, settings)).tolist() if groups else []


def _rewards(groups: Sequence[Group], settings: AlgorithmConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rewards, which completions are trained on, and which are in the baseline, each [P, G]."""
    rewards_PG = torch.tensor([g.rewards for g in groups], dtype=torch.float64)
    everyone_PG = torch.ones_like(rewards_PG, dtype=torch.bool)
    if settings.overlong == "keep":
        return rewards_PG, everyone_PG, everyone_PG
    trained_PG = torch.tensor([[not c.truncated for c in g.completions] for g in groups])
    return rewards_PG, trained_PG, everyone_PG if settings.overlong == "mask_keep_baseline" else trained_PG


def reference_exponents(rewards: Tensor, settings: AlgorithmConfig, reward: RewardConfig) -> Tensor:
    """Return phi of each reward, same shape. Raises ValueError for a reward outside the declared range."""
    return phi_of(
        rewards,
        shape=phi_shape_of(settings.phi),
        reward_range=reward.range,
        phi_min=settings.phi_min,
        phi_max=settings.phi_max,
        exponent=settings.phi_exponent,
        sharpness=settings.phi_sharpness,
    )


def loss_function(
    config: Config, sequence_mean: Callable[[Tensor, PackedBatch], Tensor]
) -> Callable[[TokenScores, PackedBatch], LossSums]:
    """Return `batch_loss` under the run's settings.

    `sequence_mean(values_T, batch)` is the trainer's (mcore/forward_backward.py).
    """
    return partial(
        batch_loss, settings=config.algorithm, middle_reward=config.reward.middle, sequence_mean=sequence_mean
    )


def batch_loss(
    scores: TokenScores,
    batch: PackedBatch,
    *,
    settings: AlgorithmConfig,
    middle_reward: float,
    sequence_mean: Callable[[Tensor, PackedBatch], Tensor],
) -> LossSums:
    """Return the RAPO loss sums of a scored micro-batch under `settings`."""
    assert batch.old_logp_T is not None and batch.ref_logp_T is not None, "the micro-batch was not scored"
    of_sequences = settings.ratio == "sequence"
    inputs = LossInputs(
        **scores._asdict(),
        old_logp_T=batch.old_logp_T,
        ref_logp_T=batch.ref_logp_T,
        engine_logp_T=batch.engine_logp_T,
        advantage_T=batch.advantage_T,
        weight_T=batch.weight_T,
        mask_T=batch.mask_T,
        sequence_log_ratio_T=sequence_mean(scores.logp_T.detach() - batch.old_logp_T, batch) if of_sequences else None,
    )
    return rapo_loss(inputs, loss_settings(settings), splits=batch.by_reward(middle_reward))


def loss_settings(settings: AlgorithmConfig) -> LossSettings:
    """Return what the loss takes from [algorithm]. Raises UserCodeError for a divergence that cannot be loaded."""
    return LossSettings(
        divergence=divergence_of(settings.divergence),
        alpha=settings.alpha,
        beta=settings.beta,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        importance_cap=settings.importance_cap,
        log_rho_cap=settings.log_rho_cap,
    )
