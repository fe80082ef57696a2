import numpy as np
import pytest

from megatron_rapo.config import AlgorithmConfig
from megatron_rapo.metrics import reference_scalars, rollout_scalars, training_scalars
from megatron_rapo.monitor.scalars import SCALARS
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, TrainingSequence, Verdict

PROMPT = Prompt(problem=Problem(id="a", text="?", answer="4"), text="?", token_ids=(5,))


def group(*completions):
    """From (outcome, formatted, reward, tokens, truncated) of each completion."""
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
    )


def test_rollout_by_hand():
    groups = [
        group((Outcome.CORRECT, True, 1.0, 10, False), (Outcome.WRONG, True, 0.0, 20, False)),
        group((Outcome.NO_ANSWER, False, -0.5, 30, True), (Outcome.NO_ANSWER, False, -0.5, 30, True)),
        group((Outcome.CORRECT, True, 1.0, 5, False), (Outcome.CORRECT, True, 1.0, 5, False)),
        group((Outcome.TIMEOUT, True, 0.0, 7, False), (Outcome.UNPARSABLE, True, 0.0, 13, True)),
    ]
    assert rollout_scalars(groups) == {
        "reward/mean": pytest.approx((1 + 0 - 0.5 - 0.5 + 1 + 1 + 0 + 0) / 8),
        "reward/pass_rate": 3 / 8,
        "reward/format_rate": 6 / 8,
        "reward/no_answer": 2 / 8,
        "reward/unparsable": 1 / 8,
        "reward/timeout": 1 / 8,
        "reward/groups_without_signal": 3 / 4,
        "rollout/completion_tokens": (10 + 20 + 30 + 30 + 5 + 5 + 7 + 13) / 8,
        "rollout/truncated": 3 / 8,
    }


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


STEPS = [
    {
        **{"loss": 1.0, "divergence": 0.2, "entropy": 2.0, "clipped": 0.0, "log_ratio_capped": 0.5},
        **{"grad_norm": 3.0, "lr": 1e-6, "surrogate": 9.0, "importance_capped": 0.75},
    },
    {
        **{"loss": -2.0, "divergence": 0.4, "entropy": 1.0, "clipped": 0.25, "log_ratio_capped": 0.0},
        **{"grad_norm": 5.0, "lr": 3e-6, "surrogate": 4.0, "importance_capped": 0.0},
    },
]
ALGORITHM = AlgorithmConfig(alpha=0.1, beta=0.02)


def test_training_by_hand():
    assert training_scalars(STEPS, ALGORITHM) == {
        "policy/loss": -0.5,
        "policy/surrogate": 6.5,
        "policy/kl": pytest.approx(0.3),
        "policy/kl_cost": pytest.approx(0.03),
        "policy/entropy_bonus": pytest.approx(0.03),
        "policy/entropy": 1.5,
        "policy/clip_fraction": 0.125,
        "policy/log_ratio_capped": 0.25,
        "policy/importance_capped": 0.375,
        "optimizer/grad_norm": 4.0,
        "optimizer/lr": 3e-6,  # the last step's
    }


def test_every_scalar_is_described():
    rollout = rollout_scalars([group((Outcome.WRONG, True, 0.0, 1, False))])
    named = {**rollout, **training_scalars(STEPS, ALGORITHM)}
    assert set(named) <= set(SCALARS)
