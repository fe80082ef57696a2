import json
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest

from megatron_rapo.config import EvaluationConfig
from megatron_rapo.evaluate import Evaluation, evaluate, pass_at_k
from megatron_rapo.rollout import Sampling
from megatron_rapo.sampling import sampling_seed
from megatron_rapo.types import Completion, Group, Outcome, Problem, Prompt, Verdict


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
    for correct in range(n + 1):
        answers = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(combinations(answers, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (16, 4, 1, 0.25),
        (4, 2, 2, 5 / 6),  # of the 6 pairs one has no right answer
        (16, 0, 16, 0.0),
        (16, 1, 16, 1.0),
        (1024, 1, 512, 0.5),
        (100_000, 1, 50_000, 0.5),  # binomials far beyond floating point
    ],
)
def test_pass_at_k_by_hand(n, correct, k, expected):
    assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-15)


def prompt(name):
    return Prompt(problem=Problem(id=name, text="?", answer="4"), text="?", token_ids=(5, 6))


def group(name, outcomes, lengths, truncated=0):
    completions = tuple(
        Completion(
            token_ids=np.arange(length, dtype=np.int32),
            logprobs=np.zeros(length, np.float32),
            text="",
            truncated=i < truncated,
        )
        for i, length in enumerate(lengths)
    )
    verdicts = tuple(Verdict(outcome=o, formatted=o is not Outcome.NO_ANSWER) for o in outcomes)
    rewards = tuple(float(o is Outcome.CORRECT) for o in outcomes)
    return Group(prompt=prompt(name), completions=completions, verdicts=verdicts, rewards=rewards)


C, W, N, U, T = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNPARSABLE, Outcome.TIMEOUT
GROUPS = [
    group("a", [C, C, W, N], [1, 2, 3, 4]),
    group("b", [W, U, T, N], [10, 10, 10, 10], truncated=1),
    group("a", [C, C, C, C], [0, 0, 0, 6], truncated=2),  # an id may come twice
]


def test_evaluation_by_hand():
    found = Evaluation.of(GROUPS, (1, 2, 4))
    assert found.pass_at.keys() == {1, 2, 4}
    assert found.pass_at[1] == pytest.approx((2 / 4 + 0 + 1) / 3)
    assert found.pass_at[2] == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert found.pass_at[4] == pytest.approx((1 + 0 + 1) / 3)
    assert found.problems == [("a", 2), ("b", 0), ("a", 4)]
    assert found.samples_per_problem == 4
    assert found.mean_completion_tokens == pytest.approx((10 + 40 + 6) / 12)
    assert found.truncated == pytest.approx(3 / 12)
    assert found.outcomes == {"correct": 6, "wrong": 2, "no_answer": 2, "unparsable": 1, "timeout": 1}


def test_saved_as_json(tmp_path):
    path = tmp_path / "deep" / "scores.json"
    Evaluation.of(GROUPS[:1], (1, 4)).save(path)
    assert json.loads(path.read_text()) == {
        "pass_at": {"1": 0.5, "4": 1.0},
        "problems": [["a", 2]],
        "samples_per_problem": 4,
        "mean_completion_tokens": 2.5,
        "truncated": 0.0,
        "outcomes": {"correct": 2, "wrong": 1, "no_answer": 1, "unparsable": 0, "timeout": 0},
    }


@dataclass
class RecordingSampler:
    """Stands in for the engines and verifiers: remembers how it was asked and answers with GROUPS."""

    asked: dict = field(default_factory=dict)

    def complete(self, prompts, n, sampling, seed):
        self.asked = {"prompts": prompts, "n": n, "sampling": sampling, "seed": seed(3, 5)}
        return {0: "completions"}

    def judge(self, prompts, completions):
        assert prompts is self.asked["prompts"] and completions == {0: "completions"}
        return GROUPS


def test_evaluate_asks_for_what_the_settings_say(tmp_path):
    settings = EvaluationConfig(
        data=tmp_path, samples_per_problem=4, k=(1, 2), temperature=0.6, top_p=0.95, max_completion_tokens=77
    )
    sampler, prompts = RecordingSampler(), [prompt("a"), prompt("b"), prompt("a")]
    assert evaluate(sampler, prompts, settings, seed=11) == Evaluation.of(GROUPS, (1, 2))
    assert sampler.asked == {
        "prompts": prompts,
        "n": 4,
        "sampling": Sampling(temperature=0.6, top_p=0.95, max_completion_tokens=77),
        "seed": sampling_seed(11, -1, 3, 5),  # of no training step, and the same before and after training
    }
