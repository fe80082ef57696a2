"""Check which completions are recorded, and their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_rapo.config import MonitorConfig
from megatron_rapo.mcore.token_logprobs import TokenLogProbs
from megatron_rapo.scoring.objective import to_sequences
from megatron_rapo.training.metrics import histograms
from megatron_rapo.training.rollout_log import choose, is_recorded, recorded
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Verdict
from megatron_rapo.verifier import extractor
from tests.runs import tiny_config


def group(name: str, *rewards: float) -> Group:
    """Build a group with a completion of two tokens for each reward."""
    completions = tuple(
        Completion(
            token_ids=np.array([65 + i, 66], np.int32),
            logprobs=np.array([-0.5 - i, -0.25], np.float32),
            text=f"\\boxed{{{i}}}" if i else "none",
            truncated=i == 1,
        )
        for i in range(len(rewards))
    )
    verdicts = tuple(Verdict(outcome=Outcome.CORRECT if r else Outcome.NO_ANSWER, formatted=True) for r in rewards)
    prompt = Prompt(problem=Problem(id=name, text="?", answer="1"), text=f"{name}?", token_ids=(5, 6))
    terms = {"correctness": rewards}
    return Group(prompt=prompt, completions=completions, verdicts=verdicts, rewards=rewards, terms=terms)


GROUPS = [[group("a", 0.0, 1.0, 0.0, 1.0, 1.0)], [group("b", 1.0, 0.0, 0.0, 0.0, 0.0)]]  # of two optimizer steps


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6]), (100, [1])])
def test_the_first_step_is_due_and_then_every_so_many(every: int, steps: list[int]) -> None:
    settings = MonitorConfig(rollouts_every_steps=every)
    assert [step for step in range(1, 8) if is_recorded(settings, step)] == steps


def test_four_of_a_prompt_are_chosen_in_the_order_of_sampling() -> None:
    chosen = choose(GROUPS, 6)
    assert list(chosen) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert [(g.prompt.problem.id, sample) for g, sample in chosen.values()] == [
        *(("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)),
    ]
    assert len(choose(GROUPS, 100)) == 8
    assert list(choose([[*GROUPS[0], *GROUPS[1]]], 5)) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 5)]


def test_a_record_has_what_everybody_said_of_the_completion() -> None:
    config = tiny_config(Path("model"), Path("run"), algorithm={"phi_min": 0.5, "advantage": "mean"})
    sequences = [to_sequences(of_step, config) for of_step in GROUPS]
    chosen = choose(GROUPS, 6)
    policy_L, reference_L = np.array([-1.0, -2.0], np.float32), np.array([-1.5, -2.0], np.float32)
    log_probs = {(0, 1): TokenLogProbs(policy_L, reference_L), (1, 0): TokenLogProbs(policy_L, None)}
    first, second = recorded(7, chosen, sequences, log_probs, lambda ids: "".join(map(chr, ids)), extractor("boxed"))
    assert (first.step, first.problem, first.sample, first.prompt, first.reference_answer) == (7, "a", 1, "a?", "1")
    assert first.tokens == ["B", "B"] and first.engine_logp == [-1.5, -0.25] and first.trainer_logp == [-1.0, -2.0]
    assert (first.reward, first.phi, first.terms, first.verdict) == (1.0, 1.0, {"correctness": 1.0}, "correct")
    assert first.advantage == pytest.approx(0.4) and first.answer == "1" and first.truncated and first.in_loss
    assert first.stale_tokens == 0
    assert (second.problem, second.sample, second.reference_logp, second.answer) == ("b", 0, None, None)
    shown = histograms([g for of_step in GROUPS for g in of_step], [first, second])
    assert shown == {
        "histogram/reward": [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        "histogram/completion_tokens": [2.0] * 10,
        "histogram/logprob_gap": [-0.5, 1.75, 0.5, 1.75],
        "histogram/log_rho": [-0.5, 0.0],
    }
    elsewhere = recorded(7, chosen, sequences, {}, lambda ids: "", extractor("boxed"))
    assert elsewhere == []  # on every process but the first
