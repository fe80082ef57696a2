from __future__ import annotations

import pytest

from megatron_rapo.monitor import SCALARS, describe
from megatron_rapo.monitor.console import HEADLINES

SPLITS = {
    "low_reward": "Completions that earned less than the middle of the reward's range.",
    "high_reward": "Completions that earned the middle of the reward's range or more.",
}


def test_every_scalar_has_a_group_and_a_sentence() -> None:
    for name, meaning in SCALARS.items():
        group, scalar, *split = name.split("/")
        assert group and scalar and (not split or (group == "estimator" and split[0] in SPLITS)), name
        assert not meaning[0].islower(), name
        assert meaning.endswith("."), name


def test_what_is_split_says_whose_it_is() -> None:
    """Each number of the estimators has two splits. Their texts add which completions they cover."""
    whole = {name: SCALARS[name] for name in SCALARS if name.startswith("estimator/") and name.count("/") == 1}
    expected = {f"{name}/{split}": f"{meaning} {SPLITS[split]}" for name, meaning in whole.items() for split in SPLITS}
    assert len(whole) == 9 and expected == {name: SCALARS[name] for name in SCALARS if name.count("/") == 2}
    assert describe("estimator/rho_ess/low_reward") == (
        "Effective sample size of rho = pihat_ref / pi over the number of tokens; 1 is best. "
        "Completions that earned less than the middle of the reward's range."
    )


def test_names_that_depend_on_the_run_are_known_by_their_group() -> None:
    assert describe("seconds/rollout") == "Duration of the phase in this step, seconds."
    assert describe("seconds/step") == SCALARS["seconds/step"]
    assert describe("reward/term/length") == "Mean of one term of the reward; reward/mean is the sum of all terms."
    assert describe("eval/pass@4").startswith("Held-out problems: chance that one of k samples is right")
    assert describe("eval/own") == "Measured on held-out problems."


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("reward/meen", "did you mean reward/mean?"),
        ("estimator/kl/lowreward", "did you mean estimator/kl/low_reward?"),
        ("loss", "declare it in megatron_rapo/monitor/scalars.py"),
        ("seconds/", "did you mean seconds/step?"),
    ],
)
def test_an_undeclared_name_is_refused_with_the_fix(name: str, fix: str) -> None:
    with pytest.raises(ValueError) as refusal:
        describe(name)
    assert f"scalar {name}: no such scalar; {fix}" in str(refusal.value)


def test_the_headlines_are_declared() -> None:
    assert HEADLINES.keys() <= SCALARS.keys()
