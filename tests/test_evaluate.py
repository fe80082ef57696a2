import io
from dataclasses import dataclass, field

import pytest

from megatron_rapo.config import EvaluationConfig
from megatron_rapo.evaluate import evaluate, show
from megatron_rapo.monitor import Console
from megatron_rapo.rollout import Sampling
from megatron_rapo.sampling import sampling_seed
from megatron_rapo.scores import Evaluation
from tests.scores import GROUPS, base, right_of, saved


@dataclass
class RecordingSampler:
    """Stands in for the engines and verifiers: remembers how it was asked and answers with GROUPS."""

    asked: dict = field(default_factory=dict)

    def complete(self, prompts, n, sampling, seed):
        self.asked = {"prompts": prompts, "n": n, "sampling": sampling, "seed": seed(3, 5)}
        return {0: "completions"}

    def verify(self, prompts, completions):
        assert prompts is self.asked["prompts"] and completions == {0: "completions"}
        return GROUPS


def test_evaluate_asks_for_what_the_settings_say(tmp_path):
    settings = EvaluationConfig(
        data=tmp_path, samples_per_problem=4, k=(1, 2), temperature=0.6, top_p=0.95, max_completion_tokens=77
    )
    sampler, prompts = RecordingSampler(), [group.prompt for group in GROUPS]
    assert evaluate(sampler, prompts, settings, seed=11) == Evaluation.of(GROUPS, (1, 2))
    assert sampler.asked == {
        "prompts": prompts,
        "n": 4,
        "sampling": Sampling(temperature=0.6, top_p=0.95, max_completion_tokens=77),
        "seed": sampling_seed(11, -1, 3, 5),  # of no training step, and the same before and after training
    }


def shown(evaluation):
    stream = io.StringIO()
    with Console(0, stream=stream) as console:
        show(console, evaluation)
    return stream.getvalue()


def test_scores_on_the_screen():
    assert shown(saved(right_of(2, 0, 2, k=(1, 2)))) == (
        "models/base on 2 problems, 2 samples each\n"
        "                   score    95% interval\n"
        "pass@1             0.500  0.000 to 1.000\n"
        "pass@2             0.500  0.000 to 1.000\n"
        "completion tokens    1.0\n"
        "truncated          0.000\n"
    )


@pytest.mark.parametrize(
    ("base_samples", "title"),
    [(2, "solved at least once in 2 samples\n"), (4, "solved at least once in 2 samples, the base's 4\n")],
)
def test_a_comparison_on_the_screen(base_samples, title):
    this = right_of(2, 1, 0, 2, 0)
    comparison = base(right_of(base_samples, 0, base_samples // 2, base_samples, 0)).compare(this)
    comparison = comparison.model_copy(update={"difference_interval": {1: (-0.375, 0.3126)}})
    text = shown(saved(this, model="runs/mine/hf", comparison=comparison))
    assert text.partition("truncated          0.000\n")[2] == (
        "compared with models/base (base.json)\n"
        "         base   this  difference      95% interval\n"
        "pass@1  0.375  0.375      +0.000  -0.375 to +0.313\n"
        f"{title}"
        "                         problems\n"
        "by this model only              1\n"
        "by the base only (lost)         1\n"
        "by both                         1\n"
        "by neither                      1\n"
    )


def test_no_negative_zero():
    """Differences that cancel but for rounding are shown as +0.000."""
    comparison = base(right_of(2, 1, 1)).compare(right_of(2, 1, 1)).model_copy(update={"difference": {1: -1e-17}})
    assert "0.500      +0.000  +0.000 to +0.000" in shown(saved(right_of(2, 1, 1), comparison=comparison))
