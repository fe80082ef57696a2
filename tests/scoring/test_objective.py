"""Check how [algorithm] turns judged groups into sequences and scored micro-batches into the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_rapo.algo import LossInputs, LossSettings, rapo_loss
from megatron_rapo.scoring.objective import batch_loss, groups_with_signal, loss_function, to_sequences
from megatron_rapo.scoring.output_head import TokenScores
from megatron_rapo.scoring.packing import pack
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Span, Verdict


def group(prompt_tokens, *completions):
    """Build a group from (tokens, reward, truncated) of each completion. Each token has its own engine logprob."""
    return Group(
        prompt=Prompt(problem=Problem(id="a", text="?", answer="4"), text="?", token_ids=tuple(prompt_tokens)),
        completions=tuple(
            Completion(
                token_ids=np.array(tokens, np.int32),
                logprobs=-np.array(tokens, np.float32) / 16,
                text="",
                truncated=truncated,
            )
            for tokens, _, truncated in completions
        ),
        verdicts=(Verdict(outcome=Outcome.WRONG, formatted=True),) * len(completions),
        rewards=tuple(reward for _, reward, _ in completions),
    )


# Completions of 3, 1, 2 and 6 tokens; the last two were cut off.
GROUPS = [
    group([5], ([10, 11, 12], 1.0, False), ([13], 0.0, False)),
    group([6, 7], ([14, 15], 0.0, True), ([16, 17, 18, 19, 20, 21], 0.5, True)),
]
RANGE = ["reward.wrong=-1.0"]  # rewards from -1 to 1, so those above are 1, 1/2, 1/2 and 3/4 of the way


def column(name, load, *overrides, groups=GROUPS):
    return [getattr(sequence, name) for sequence in to_sequences(groups, load(*RANGE, *overrides))]


def test_sequences_are_the_completions_behind_their_prompts(load):
    sequences = to_sequences(GROUPS, load(*RANGE))
    assert [s.token_ids.tolist() for s in sequences] == [
        *([5, 10, 11, 12], [5, 13], [6, 7, 14, 15], [6, 7, 16, 17, 18, 19, 20, 21])
    ]
    assert {s.token_ids.dtype for s in sequences} == {np.dtype(np.int32)}
    assert [s.prompt_length for s in sequences] == [1, 1, 2, 2]
    assert [(-16 * s.engine_logprobs).tolist() for s in sequences] == [
        *([10, 11, 12], [13], [14, 15], [16, 17, 18, 19, 20, 21])
    ]
    assert [s.reward for s in sequences] == [1.0, 0.0, 0.0, 0.5]


def test_tokens_of_other_weights_than_the_groups_are_stale(load):
    """Stale are the first two of three tokens, none of one, and both of two."""
    spans = (Span(3, 1), Span(4, 1), Span(5, 1)), (Span(5, 1),), (Span(4, 2),), (Span(5, 6),)
    groups = [
        replace(
            group,
            weight_version=5,
            completions=tuple(replace(c, spans=spans[2 * i + j]) for j, c in enumerate(group.completions)),
        )
        for i, group in enumerate(GROUPS)
    ]
    assert column("num_stale", load, groups=groups) == [2, 0, 2, 0]
    assert column("num_stale", load) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean_std", [2**-0.5, -(2**-0.5), -(2**-0.5), 2**-0.5]),
        ("mean", [0.5, -0.5, -0.25, 0.25]),
        ("leave_one_out", [1.0, -1.0, -0.5, 0.5]),
    ],
)
def test_advantages_within_each_group(load, kind, expected):
    assert column("advantage", load, f"algorithm.advantage={kind}") == pytest.approx(expected, rel=1e-5)


def test_rewards_that_differ_by_rounding_have_no_advantage(load):
    eight = [group([5], *(([i], reward, False) for i, reward in enumerate([0.35] * 7 + [0.35000001])))]
    assert column("advantage", load, groups=eight) == [0.0] * 8
    assert groups_with_signal(eight, load().algorithm) == [False]


@pytest.mark.parametrize(
    ("overrides", "shares"),
    [
        ([], [1.0, 0.5, 0.5, 0.75]),
        (["algorithm.phi=power", "algorithm.phi_exponent=3.0"], [1.0, 0.125, 0.125, 0.421875]),
        (["algorithm.phi=sigmoid", "algorithm.phi_sharpness=1e4"], [1.0, 0.5, 0.5, 1.0]),
    ],
)
def test_exponents_of_the_reference(load, overrides, shares):
    found = column("phi", load, "algorithm.phi_min=0.25", "algorithm.phi_max=0.75", *overrides)
    assert found == pytest.approx([0.25 + 0.5 * share for share in shares])


def test_a_constant_exponent(load):
    assert column("phi", load, "algorithm.phi=constant", "algorithm.phi_max=0.75") == [0.75] * 4


@pytest.mark.parametrize(
    ("overrides", "weights", "in_loss"),
    [
        ([], [1.0] * 4, [True] * 4),
        (["algorithm.overlong=mask"], [1.0] * 2, [True, True, False, False]),
        # Mean lengths: 12 / 4 = 3 tokens of all, 4 / 2 = 2 of those in the loss.
        (["algorithm.aggregation=sequence"], [1.0, 3.0, 1.5, 0.5], [True] * 4),
        (["algorithm.aggregation=sequence", "algorithm.overlong=mask"], [2 / 3, 2.0], [True, True, False, False]),
    ],
)
def test_weights_and_who_is_in_the_loss(load, overrides, weights, in_loss):
    assert column("in_loss", load, *overrides) == in_loss
    kept = [w for w, k in zip(column("weight", load, *overrides), in_loss, strict=True) if k]
    assert kept == pytest.approx(weights)


@pytest.mark.parametrize(
    ("overlong", "advantages"),
    [
        ("keep", [0.5, 0.5, -0.5, -0.5]),
        ("mask", [2 / 3, 0.0, -1 / 3, -1 / 3]),
        ("mask_keep_baseline", [0.5, 0.0, -0.5, -0.5]),
    ],
)
def test_completions_left_out_and_their_groups_baseline(load, overlong, advantages):
    """The second was truncated. If all but one of a group were truncated, only those that count can give a signal."""
    cut_off = [group([5], ([1], 1.0, False), ([2], 1.0, True), ([3], 0.0, False), ([4], 0.0, False))]
    overrides = ["algorithm.advantage=mean", f"algorithm.overlong={overlong}"]
    assert column("advantage", load, *overrides, groups=cut_off) == pytest.approx(advantages, abs=1e-15)
    others = [group([5], ([1], 1.0, True), ([2], 1.0, True), ([3], 0.0, True), ([4], 0.0, False))]
    found = groups_with_signal(cut_off + others, load(*overrides).algorithm)
    assert found == [True, overlong != "mask"]
    assert groups_with_signal([], load().algorithm) == []


@pytest.mark.parametrize("overlong", ["keep", "mask"])
def test_the_weighted_sum_over_tokens_is_the_mean_over_sequences(load, overlong):
    """Values are packed, summed and divided by the number of tokens in the loss, as in the trainer."""
    sequences = to_sequences(GROUPS, load(*RANGE, "algorithm.aggregation=sequence", f"algorithm.overlong={overlong}"))
    batch = pack(sequences, range(4), context=1, num_tokens=24)
    values_T = torch.rand(24, generator=torch.Generator().manual_seed(0))
    found = (batch.weight_T * values_T)[batch.mask_T].sum() / batch.mask_T.sum()
    means = [values_T[batch.mask_T & (batch.sequence_T == i)].mean() for i in range(4 if overlong == "keep" else 2)]
    torch.testing.assert_close(found, torch.stack(means).mean())


def test_all_left_out(load):
    cut_off = [GROUPS[1]]
    overrides = ["algorithm.aggregation=sequence", "algorithm.overlong=mask"]
    assert column("in_loss", load, *overrides, groups=cut_off) == [False, False]
    assert not pack(to_sequences(cut_off, load(*RANGE, *overrides)), range(2), context=1, num_tokens=12).mask_T.any()


# --- the loss ---

SETTINGS = [
    *("algorithm.alpha=0.3", "algorithm.beta=0.2", "algorithm.clip_low=0.1", "algorithm.clip_high=0.4"),
    *("algorithm.importance_cap=1.25", "reward.wrong=-0.5"),  # rewards below 0.25 are low
]
FIELDS = ("old_logp_T", "ref_logp_T", "engine_logp_T", "advantage_T", "weight_T")


def scored_batch(load):
    """Pack both groups, with random scores of policy, old policy and reference."""
    batch = pack(to_sequences(GROUPS, load(*RANGE)), range(4), context=1, num_tokens=20)
    generator = torch.Generator().manual_seed(0)
    logp_T, entropy_T, kl_T, old_T, ref_T, weight_T = torch.randn(6, 20, generator=generator)
    logp_T = batch.engine_logp_T + 0.3 * logp_T
    scored = {"old_logp_T": logp_T + 0.3 * old_T, "ref_logp_T": logp_T + ref_T, "weight_T": 1 + weight_T.abs()}
    scores = TokenScores(logp_T.requires_grad_(), entropy_T.requires_grad_(), kl_T.requires_grad_())
    return scores, replace(batch, **{name: value.detach() for name, value in scored.items()})


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(
    ("divergence", "log_rho_cap"),
    [("rapo_paper", 0.5), ("reverse_kl", 0.5), ("forward_kl_exact", 10.0), ("none", 10.0)],
)
def test_the_loss_is_given_every_setting(load, divergence, log_rho_cap, ratio):
    scores, batch = scored_batch(load)
    overrides = [f"algorithm.divergence={divergence}", f"algorithm.ratio={ratio}", *SETTINGS]
    if divergence == "none":
        overrides.append("algorithm.alpha=0")
    if log_rho_cap != 10.0:
        overrides.append(f"algorithm.log_rho_cap={log_rho_cap}")
    asked = []

    def sequence_mean(values_T, of_batch):
        assert not values_T.requires_grad and of_batch is batch
        asked.append(values_T)
        return 0.5 * values_T  # what it does is the trainer's

    found = loss_function(load(*overrides), sequence_mean)(scores, batch)
    log_ratio_T = (scores.logp_T - batch.old_logp_T).detach()
    inputs = LossInputs(
        **scores._asdict(),
        **{name: getattr(batch, name) for name in FIELDS},
        mask_T=batch.mask_T,
        sequence_log_ratio_T=0.5 * log_ratio_T if ratio == "sequence" else None,
    )
    settings = LossSettings(
        divergence=divergence,
        alpha=0.0 if divergence == "none" else 0.3,
        beta=0.2,
        clip_low=0.1,
        clip_high=0.4,
        importance_cap=1.25,
        log_rho_cap=log_rho_cap,
    )
    splits = {"low_reward": batch.reward_T < 0.25, "high_reward": batch.reward_T >= 0.25}
    expected = rapo_loss(inputs, settings, splits)
    assert found.loss.item() == expected.loss.item() and found.metrics == expected.metrics
    gradients = [torch.autograd.grad(sums.loss, scores, materialize_grads=True) for sums in (found, expected)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert found.metrics["clipped"] > 0 and found.metrics["importance_capped"] > 0  # so these settings mattered
    assert (found.metrics["log_rho_capped"] > 0) == (log_rho_cap != 10.0)
    assert len(asked) == (ratio == "sequence") and all(torch.equal(each, log_ratio_T) for each in asked)


@pytest.mark.parametrize("missing", ["old_logp_T", "ref_logp_T"])
def test_a_batch_must_have_been_scored(load, missing):
    scores, batch = scored_batch(load)
    unscored = replace(batch, **{missing: None})
    with pytest.raises(AssertionError, match="the micro-batch was not scored"):
        batch_loss(scores, unscored, settings=load().algorithm, middle_reward=0.5, sequence_mean=None)
