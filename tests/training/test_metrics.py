import numpy as np
import pytest
import torch

from megatron_rapo.algo import LossInputs, LossSettings, rapo_loss
from megatron_rapo.config import AlgorithmConfig
from megatron_rapo.monitor.scalars import SCALARS, describe
from megatron_rapo.training.metrics import estimator_scalars, reference_scalars, rollout_scalars, training_scalars
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, TrainingSequence, Verdict

PROMPT = Prompt(problem=Problem(id="a", text="?", answer="4"), text="?", token_ids=(5,))


def group(*completions):
    """Build a group from (outcome, formatted, reward, tokens, truncated) of each completion."""
    return Group(
        prompt=PROMPT,
        completions=tuple(
            Completion(
                token_ids=np.zeros(tokens, np.int32),
                logprobs=np.zeros(tokens, np.float32),
                text="",
                truncated=truncated,
            )
            for _, _, _, tokens, truncated in completions
        ),
        verdicts=tuple(Verdict(outcome=outcome, formatted=formatted) for outcome, formatted, *_ in completions),
        rewards=tuple(reward for _, _, reward, *_ in completions),
        terms={
            "correctness": tuple(reward if formatted else 0.0 for _, formatted, reward, *_ in completions),
            "format": tuple(0.0 if formatted else reward for _, formatted, reward, *_ in completions),
        },
    )


def test_rollout_by_hand():
    groups = [
        group((Outcome.CORRECT, True, 1.0, 10, False), (Outcome.WRONG, True, 0.0, 20, False)),
        group((Outcome.NO_ANSWER, False, -0.5, 30, True), (Outcome.NO_ANSWER, False, -0.5, 30, True)),
        group((Outcome.CORRECT, True, 1.0, 5, False), (Outcome.CORRECT, True, 1.0, 5, False)),
        group((Outcome.TIMEOUT, True, 0.0, 7, False), (Outcome.UNPARSABLE, True, 0.0, 13, True)),
    ]
    others = {f"reward/{outcome.value}": 0.0 for outcome in Outcome if outcome is not Outcome.CORRECT}
    assert rollout_scalars(groups, AlgorithmConfig()) == others | {
        "reward/term/correctness": 3 / 8,
        "reward/term/format": -1 / 8,
        "reward/mean": pytest.approx((1 + 0 - 0.5 - 0.5 + 1 + 1 + 0 + 0) / 8),
        "reward/pass_rate": 3 / 8,
        "reward/format_rate": 6 / 8,
        "reward/wrong": 1 / 8,
        "reward/unevaluated": 0 / 8,
        "reward/no_answer": 2 / 8,
        "reward/unparsable": 1 / 8,
        "reward/timeout": 1 / 8,
        "reward/groups_without_signal": 3 / 4,
        "rollout/completion_tokens": (10 + 20 + 30 + 30 + 5 + 5 + 7 + 13) / 8,
        "rollout/truncated": 3 / 8,
    }


def test_a_signal_of_masked_completions_is_none():
    groups = [group((Outcome.CORRECT, True, 1.0, 10, False), (Outcome.NO_ANSWER, False, 0.0, 20, True))]
    found = [
        rollout_scalars(groups, AlgorithmConfig(overlong=overlong))["reward/groups_without_signal"]
        for overlong in ("keep", "mask", "mask_keep_baseline")
    ]
    assert found == [0.0, 1.0, 0.0]


def test_reference_by_hand():
    sequences = [
        TrainingSequence(
            token_ids=np.zeros(3, np.int32),
            prompt_length=1,
            engine_logprobs=np.zeros(2, np.float32),
            advantage=0.0,
            phi=phi,
            reward=0.0,
        )
        for phi in (0.9, 1.0, 0.95, 0.75)
    ]
    assert reference_scalars(sequences) == {
        "reference/phi_mean": pytest.approx((0.9 + 1.0 + 0.95 + 0.75) / 4),
        "reference/phi_min": 0.75,
    }


ALGORITHM = AlgorithmConfig(alpha=0.1, beta=0.02)
STEPS = [
    {
        **{"loss": 1.0, "surrogate": 9.0, "divergence": 0.2, "entropy_bonus": 0.04, "entropy": 2.0, "clipped": 0.0},
        **{"kl": 0.3, "ratio_capped": 0.0, "staleness": 0.0, "num_tokens": 100.0},
        **{
            "grad_norm": 3.0,
            "lr": 1e-6,
            "skipped": 1.0,
            "rho": 0.5,
            "rho_squared": 0.5,
            "importance": 1.0,
            "importance_squared": 2.0,
        },
        **{"log_rho_capped": 0.5, "importance_capped": 0.75},
        # a quarter of the tokens; none of the others is among the low rewards
        **{"kl/high_reward": 0.1, "rho/high_reward": 0.25, "rho_squared/high_reward": 0.5},
        **{"importance/high_reward": 0.25, "importance_squared/high_reward": 0.25},
        **{"log_rho_capped/high_reward": 0.125, "importance_capped/high_reward": 0.25, "tokens/high_reward": 0.25},
    },
    {
        **{"loss": -2.0, "surrogate": 4.0, "divergence": 0.4, "entropy_bonus": 0.02, "entropy": 1.0, "clipped": 0.25},
        **{"kl": 0.5, "ratio_capped": 0.5, "staleness": 0.03, "num_tokens": 100.0},
        **{
            "grad_norm": 5.0,
            "lr": 3e-6,
            "skipped": 0.0,
            "rho": 1.5,
            "rho_squared": 4.5,
            "importance": 2.0,
            "importance_squared": 6.0,
        },
        **{"log_rho_capped": 0.0, "importance_capped": 0.0},
        **{"kl/high_reward": 0.2, "rho/high_reward": 0.5, "rho_squared/high_reward": 1.0},
        **{"importance/high_reward": 0.5, "importance_squared/high_reward": 1.0},
        **{"log_rho_capped/high_reward": 0.0, "importance_capped/high_reward": 0.0, "tokens/high_reward": 0.5},
    },
]
STEPS = [step | {name.replace("high", "low"): 0.0 for name in step if "/" in name} for step in STEPS]


def test_training_by_hand():
    assert training_scalars(STEPS, ALGORITHM) == {
        "policy/loss": pytest.approx(-6.5 + 0.03 - 0.03),
        "policy/surrogate": 6.5,
        "policy/kl": pytest.approx(0.4),
        "policy/kl_cost": pytest.approx(0.03),
        "policy/entropy_bonus": pytest.approx(0.03),
        "policy/entropy": 1.5,
        "policy/clip_fraction": 0.125,
        "policy/ratio_capped": 0.25,
        "policy/staleness": pytest.approx(0.015),
        "optimizer/grad_norm": 4.0,
        "optimizer/lr": 3e-6,  # the last step's
        "optimizer/skipped_steps": 1.0,
    }


def test_estimator_by_hand():
    """Means are over both steps' tokens; high rewards have 0.75 of 2. No completion has a low reward: no scalars.

    Effective sample sizes: 2^2 / (5 * 2) and 3^2 / (8 * 2); of high rewards 0.75^2 / (1.5 * 0.75), / (1.25 * 0.75).
    """
    assert estimator_scalars(STEPS, ALGORITHM) == {
        "estimator/kl": pytest.approx(0.4),
        "estimator/rho_ess": pytest.approx(0.4),
        "estimator/importance_ess": pytest.approx(9 / 16),
        "estimator/log_rho_capped": pytest.approx(0.25),
        "estimator/importance_capped": pytest.approx(0.375),
        "estimator/kl/high_reward": pytest.approx(0.4),
        "estimator/rho_ess/high_reward": pytest.approx(0.5),
        "estimator/importance_ess/high_reward": pytest.approx(0.6),
        "estimator/log_rho_capped/high_reward": pytest.approx(1 / 6),
        "estimator/importance_capped/high_reward": pytest.approx(1 / 3),
    }


def test_equal_weights_have_the_best_effective_sample_size():
    """5 of 8 tokens have a high reward. They have the same weight, so all of them count."""
    whole = {"kl": 1.0, "rho": 0.3, "rho_squared": 0.09, "importance": 2.0, "importance_squared": 4.0}
    step = whole | {"log_rho_capped": 0.0, "importance_capped": 0.0, "num_tokens": 8.0}
    of_high = {f"{name}/high_reward": 5 / 8 * value for name, value in step.items()} | {"tokens/high_reward": 5 / 8}
    of_low = {f"{name}/low_reward": 3 / 8 * value for name, value in step.items()} | {"tokens/low_reward": 3 / 8}
    found = estimator_scalars([step | of_high | of_low] * 3, ALGORITHM)
    assert {name: value for name, value in found.items() if "_ess" in name} == {
        f"estimator/{weights}_ess{split}": pytest.approx(1.0)
        for weights in ("rho", "importance")
        for split in ("", "/low_reward", "/high_reward")
    }
    assert found["estimator/kl/low_reward"] == pytest.approx(1.0)


def test_without_a_divergence_only_the_engines_weights_are_estimates():
    found = estimator_scalars(STEPS, AlgorithmConfig(divergence="none"))
    of_all = estimator_scalars(STEPS, ALGORITHM)
    assert found == {name: value for name, value in of_all.items() if name.startswith("estimator/importance_")}
    assert len(found) == 4


def test_steps_count_by_their_tokens():
    """A step without completions in the loss has no weight. Alone it gives 0 and does not fail."""
    empty = dict.fromkeys(STEPS[0], 0.0) | {"grad_norm": 0.0, "lr": 1e-6}
    assert estimator_scalars([*STEPS, empty], ALGORITHM) == estimator_scalars(STEPS, ALGORITHM)
    assert estimator_scalars([empty], ALGORITHM) == {}
    assert training_scalars([empty], ALGORITHM)["policy/kl"] == 0.0
    thrice = [STEPS[0] | {"num_tokens": 300.0}, STEPS[1]]
    assert training_scalars(thrice, ALGORITHM)["policy/kl"] == pytest.approx((3 * 0.3 + 0.5) / 4)


def test_every_scalar_is_declared_and_every_sum_is_the_losses():
    """The metrics are those of a real loss, with tokens of low and high reward."""
    ones_T = torch.ones(2)
    names = ("logp_T", "entropy_T", "old_logp_T", "ref_logp_T", "engine_logp_T", "advantage_T", "weight_T")
    limits = {"clip_low": 0.2, "clip_high": 0.2, "importance_cap": 2.0, "log_rho_cap": 10.0}
    sums = rapo_loss(
        LossInputs(**dict.fromkeys(names, ones_T), mask_T=ones_T.bool()),
        LossSettings(divergence="forward_kl", alpha=0.1, beta=0.02, **limits),
        splits={"low_reward": torch.tensor([True, False]), "high_reward": torch.tensor([False, True])},
    )
    step = {"loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "skipped": 0.0, "num_tokens": 2.0} | {
        name: value.item() / 2 for name, value in sums.metrics.items()
    }
    training, estimator = training_scalars([step], ALGORITHM), estimator_scalars([step], ALGORITHM)
    assert len(estimator) == 15 and estimator["estimator/rho_ess/low_reward"] == 1.0
    rollout = rollout_scalars([group((Outcome.WRONG, True, 0.0, 1, False))], ALGORITHM)
    reference = {"reference/phi_mean", "reference/phi_min"}
    rollout_names = {name for name in rollout if describe(name)}
    assert {"reward/term/correctness", "reward/term/format"} <= rollout_names
    assert {
        *(rollout_names - {name for name in rollout if "/term/" in name}),
        *reference,
        *training,
        *estimator,
    } <= set(SCALARS)
