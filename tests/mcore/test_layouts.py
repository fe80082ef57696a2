"""The parallel layout does not change the mathematics: one rollout, every layout, the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_rapo.config import Config
from megatron_rapo.types import TrainingSequence
from tests.mcore.layouts import BF16, LAYOUTS, SAMPLED, SETTINGS, SHARED_PROMPTS, TRAINED, one_process
from tests.runs import log_probs, recorded_rollout, tiny_config
from tests.tiny_models import load_reference

SEVERAL_PROCESSES = [
    (layout, setting) for layout, setting in TRAINED if layout in LAYOUTS and LAYOUTS[layout].nproc > 1
]


@pytest.fixture(scope="module")
def rollouts(models: Path) -> dict[str, list[TrainingSequence]]:
    return {name: recorded_rollout(models / name) for name in {layout.model for layout in LAYOUTS.values()}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_transformers(found: dict[str, Any], rollouts: dict[str, Any], layout: str) -> None:
    logits, rollout = found[layout]["logits"], rollouts[LAYOUTS[layout].model]
    assert logits["error"] < 1e-5
    assert logits["tokens"] == sum(len(sequence.token_ids) for sequence in rollout)  # each once


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_differ_in_size_and_are_not_filled_up(found: dict[str, Any], layout: str) -> None:
    """Pipeline stages send them without filling. Context parallelism aligns sequences of 28 tokens to 4 or 8."""
    context = LAYOUTS[layout].sections.get("parallel", {}).get("context", 1)
    assert len(set(found[layout]["sizes"])) > 1
    assert found[layout]["filled_up"] < (0.05 if context == 1 else 0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_equal_transformers(found: dict[str, Any], rollouts: dict[str, Any], layout: str) -> None:
    sampled = sum(len(s.engine_logprobs) for s in rollouts[LAYOUTS[layout].model] if s.in_loss)
    for whose in ("policy", "reference"):
        assert found[layout][whose]["error"] < 1e-5
        assert found[layout][whose]["tokens"] == 2 * sampled  # the whole rollout, and again in two parts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_completions_come_to_the_first_process(
    found: dict[str, Any], rollouts: dict[str, Any], layout: str
) -> None:
    """All their tokens come, of two optimizer steps, from every pipeline, context and data-parallel rank."""
    rollout = rollouts[LAYOUTS[layout].model]
    assert found[layout]["chosen"]["error"] < 1e-5
    assert found[layout]["chosen"]["tokens"] == 2 * sum(len(rollout[i].engine_logprobs) for i in (0, 2, 8, 11))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequence_means_by_hand(found: dict[str, Any], rollouts: dict[str, Any], layout: str) -> None:
    """Every rank with a part of a sequence has the mean position of the tokens that the loss counts."""
    assert found[layout]["sequence_mean"]["error"] < 1e-5
    assert found[layout]["sequence_mean"]["tokens"] == found[layout]["logits"]["tokens"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hf_weights_survive_the_round_trip_bit_by_bit(found: dict[str, Any], layout: str) -> None:
    assert found[layout]["round_trip"] is True


@pytest.mark.parametrize(("layout", "setting"), SEVERAL_PROCESSES)
def test_training_is_the_same(found: dict[str, Any], layout: str, setting: str) -> None:
    expected, steps = found[one_process(layout)][setting]["steps"], found[layout][setting]["steps"]
    for name in ("loss", "grad_norm", "entropy", "divergence", "divergence/low_reward", "surrogate"):
        # A KL of near distributions is a sum of differences of log-probabilities, whose rounding is absolute.
        assert steps[0][name] == pytest.approx(expected[0][name], rel=1e-5, abs=1e-7), name
    for name in ("loss", "entropy", "divergence"):
        assert steps[1][name] == pytest.approx(expected[1][name], rel=1e-5), f"{name} after one update"
    assert abs(expected[1]["loss"] - expected[0]["loss"]) > 1e-2  # the update did something


@pytest.mark.parametrize(("layout", "setting"), SEVERAL_PROCESSES)
def test_the_updated_weights_are_the_same(found: dict[str, Any], models: Path, layout: str, setting: str) -> None:
    errors = found[layout][setting]["update_errors"]
    assert errors.keys() == load_file(models / LAYOUTS[layout].model / "model.safetensors").keys()
    # The weights of norms are near 1, and some of their updates so small that a weight's last bit is 1e-4 of them.
    assert max(errors.values()) < 2e-4, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("layout", SHARED_PROMPTS)
def test_sharing_prompts_changes_nothing_but_the_work(
    found: dict[str, Any], rollouts: dict[str, Any], layout: str
) -> None:
    """Log-probabilities equal transformers'. Losses, gradients and updates equal those without sharing."""
    whole, shared = found[one_process(layout)]["share_prompts=False"], found[layout]["share_prompts=True"]
    sampled = sum(len(s.engine_logprobs) for s in rollouts[LAYOUTS[layout].model] if s.in_loss)
    for whose in ("policy", "reference"):
        assert shared[whose]["error"] < 1e-5
        assert shared[whose]["tokens"] == 2 * sampled
    for name in ("loss", "grad_norm", "entropy", "divergence", "surrogate"):
        assert shared["steps"][0][name] == pytest.approx(whole["steps"][0][name], rel=1e-5, abs=1e-7), name
    assert shared["steps"][1]["loss"] == pytest.approx(whole["steps"][1]["loss"], rel=1e-5)
    assert max(shared["update_errors"].values()) < 2e-4
    data_ranks = 2 if layout.startswith("DP2") else 1
    assert data_ranks * sum(shared["sizes"]) < 0.9 * sum(whole["sizes"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_bf16_is_near_float32(found: dict[str, Any], setting: str) -> None:
    expected, steps = found[one_process(BF16)][setting]["steps"], found[BF16][setting]["steps"]
    assert steps[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.02)
    assert steps[0]["divergence"] == pytest.approx(expected[0]["divergence"], rel=0.02)
    assert steps[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=0.05)
    assert steps[2]["loss"] == pytest.approx(expected[2]["loss"], rel=0.05)


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != SAMPLED])
@pytest.mark.parametrize("model", ["tied", "untied"])
def test_loss_over_the_vocabulary_equals_transformers(
    found: dict[str, Any], models: Path, model: str, setting: str
) -> None:
    """It is measured after one update, so that policy, old policy and reference differ."""
    config, steps = tiny_config(models / model, models, **SETTINGS[setting]), found[f"TP1 {model}"][setting]["steps"]
    base, policy = load_reference(models / model), load_reference(models / model)
    update = load_file(models / model / f"{setting}.safetensors")
    state = policy.state_dict()
    for name, difference in update.items():
        state[name] += difference
    rollout = recorded_rollout(models / model, temperature=config.rollout.temperature)
    divergence, loss = by_definition(config, policy, base, rollout)
    assert steps[1]["divergence"] == pytest.approx(divergence, rel=1e-5)
    assert steps[1]["loss"] == pytest.approx(loss, rel=1e-5)


def by_definition(
    config: Config, policy: torch.nn.Module, base: torch.nn.Module, rollout: Sequence[TrainingSequence]
) -> tuple[float, float]:
    """Return divergence and loss: means over tokens, or means over sequences of their means."""
    settings, scale = config.algorithm, 1 / config.rollout.temperature
    of_sequences = []  # [sequence][divergence or loss, token]
    for sequence in (s for s in rollout if s.in_loss):
        sampled = slice(sequence.prompt_length - 1, None)
        logp_TV, old_logp_TV, ref_logp_TV = (
            log_probs(model, sequence.token_ids, scale_of)[sampled].double()
            for model, scale_of in ((policy, scale), (base, scale), (base, scale * sequence.phi))
        )
        targets_T1 = torch.from_numpy(sequence.token_ids).long()[sequence.prompt_length :, None]
        logp_T, old_logp_T = (values_TV.gather(1, targets_T1)[:, 0] for values_TV in (logp_TV, old_logp_TV))
        log_ratio_T = logp_T - old_logp_T
        if settings.ratio == "sequence":
            log_ratio_T = log_ratio_T.mean().expand_as(log_ratio_T)
        ratio_T = log_ratio_T.exp()
        clipped_T = ratio_T.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        surrogate_T = torch.minimum(ratio_T * sequence.advantage, clipped_T * sequence.advantage)
        importance_T = (
            (old_logp_T - torch.from_numpy(sequence.engine_logprobs)).exp().clamp(max=settings.importance_cap)
        )
        forward = settings.divergence == "forward_kl_exact"
        p_TV, q_TV = (ref_logp_TV, logp_TV) if forward else (logp_TV, ref_logp_TV)
        kl_T = (p_TV.exp() * (p_TV - q_TV)).sum(-1)
        entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
        loss_T = -(importance_T.clamp(max=2.0) * surrogate_T - settings.alpha * kl_T + settings.beta * entropy_T)
        of_sequences.append(torch.stack([kl_T, loss_T]))
    if settings.aggregation == "sequence":
        means = torch.stack([values_2T.mean(-1) for values_2T in of_sequences]).mean(0)
    else:
        means = torch.cat(of_sequences, dim=-1).mean(-1)
    divergence, loss = means.tolist()
    return divergence, loss
