from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_rapo.data import PromptSet
from megatron_rapo.evaluation.held_out import WAVES, HeldOut, problems_in_part
from megatron_rapo.evaluation.scores import ProblemScore
from megatron_rapo.rollout import Sampling
from megatron_rapo.rollout.sampler import sampling_seed
from megatron_rapo.types import Completion, Group, Outcome, Prompt, Verdict
from tests.evaluation.known import problem

SETTINGS = (
    *("evaluation.data=held.jsonl", "evaluation.samples_per_problem=4", "evaluation.k=[1,2]"),
    *("evaluation.temperature=0.6", "evaluation.top_p=0.95", "evaluation.max_completion_tokens=77"),
    *("rollout.max_concurrent=2", "run.seed=11"),
    *('rollout.stop=["Q:"]', "rollout.stop_token_ids=[8]"),
)
PROMPTS = tuple(Prompt(problem=problem(f"p{i}"), text=f"p{i}?", token_ids=(i, 7)) for i in range(5))


@dataclass
class RecordingSampler:
    """Stands in for engines and verifiers. Remembers its calls, and every answer is right."""

    num_replicas: int = 1
    asked: list = field(default_factory=list)

    @property
    def engine(self):
        return SimpleNamespace(num_replicas=self.num_replicas)

    def complete(self, prompts, n, sampling, seed):
        seeds = [[seed(i, j) for j in range(n)] for i in range(len(prompts))]
        self.asked.append({"prompts": prompts, "sampling": sampling, "seeds": seeds})
        nothing = Completion(
            token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32), text=r"\boxed{2}", truncated=False
        )
        right = Verdict(outcome=Outcome.CORRECT, formatted=True)
        return [Group(prompt=prompt, completions=(nothing,) * n, verdicts=(right,) * n) for prompt in prompts]

    def verify(self, sampled):
        return sampled


@pytest.fixture
def heldout(load):
    config = load(*SETTINGS)
    return HeldOut(config, config.evaluation, PromptSet(prompts=PROMPTS, too_long=(problem("long"),)))


def test_samples_are_asked_for_as_the_settings_say(heldout):
    """Two problems of four samples fill an engine of two completions four times."""
    sampler = RecordingSampler()
    parts = list(heldout.parts(sampler))
    assert [[each.id for each in part] for part in parts] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    assert [[each.index for each in part] for part in parts] == [[0, 1], [2, 3], [4]]
    assert [prompt for asked in sampler.asked for prompt in asked["prompts"]] == list(PROMPTS)
    assert sampler.asked[0]["sampling"] == Sampling(temperature=0.6, top_p=0.95, max_completion_tokens=77)


def test_a_sample_has_a_seed_of_its_own_wherever_it_is_sampled(heldout):
    """Seeds belong to no training step, are the same before and after training, and stand in the file."""
    expected = [[sampling_seed(11, -1, i, j) for j in range(4)] for i in range(5)]
    for sampler, start in ((RecordingSampler(), 0), (RecordingSampler(num_replicas=2), 0), (RecordingSampler(), 3)):
        written = [each for part in heldout.parts(sampler, start=start) for each in part]
        asked = [seeds for each in sampler.asked for seeds in each["seeds"]]
        assert asked == [[sample.seed for sample in each.samples] for each in written] == expected[start:]
        assert [each.index for each in written] == list(range(start, 5))


@pytest.mark.parametrize(
    ("max_concurrent", "n", "replicas", "expected"),
    [(256, 16, 1, WAVES * 16), (256, 16, 8, 8 * WAVES * 16), (256, 4096, 8, 8), (3, 5, 1, 2)],
)
def test_the_size_of_a_part(max_concurrent, n, replicas, expected):
    assert problems_in_part(max_concurrent, n, replicas) == expected


def test_what_decides_the_samples(heldout):
    found = heldout.sampled_with("3f")
    assert (found.weights, found.template, found.dtype, found.fp8) == ("3f", "qwen-boxed", "bfloat16", False)
    assert (found.samples_per_problem, found.temperature, found.top_p) == (4, 0.6, 0.95)
    assert (found.max_completion_tokens, found.seed) == (77, 11)
    assert (found.stop, found.stop_token_ids) == (["Q:"], [8])


@pytest.mark.parametrize(
    "other",
    [
        PROMPTS[:-1],
        PROMPTS[::-1],
        (replace(PROMPTS[0], token_ids=(0, 8)), *PROMPTS[1:]),
        (replace(PROMPTS[0], problem=problem("p0", answer="3")), *PROMPTS[1:]),
    ],
    ids=["fewer", "another order", "another tokenizer", "another answer"],
)
def test_other_prompts_or_answers_are_told(heldout, other):
    same = replace(heldout, prompts=PromptSet(prompts=tuple(PROMPTS), too_long=()))
    assert heldout.sampled_with("3f") == same.sampled_with("3f")
    changed = replace(heldout, prompts=PromptSet(prompts=other, too_long=()))
    assert heldout.sampled_with("3f").problems != changed.sampled_with("3f").problems


def test_scores_say_where_they_are_from(heldout):
    problems = [ProblemScore.of(each) for part in heldout.parts(RecordingSampler()) for each in part]
    found = heldout.scores(problems, model="models/base", weights="3f")
    assert (found.model, found.data, found.left_out, found.samples_per_problem) == ("models/base", "held.jsonl", 1, 4)
    assert found.sampled_with["weights"] == "3f" and found.k == (1, 2)
    assert {name: score.value for name, score in found.scores.items()} == {
        **{"avg": 1.0, "pass@1": 1.0, "pass@2": 1.0},
        "maj@2": 1.0,
    }
