from __future__ import annotations

import pytest

from megatron_rapo.monitor import SCALARS, describe
from megatron_rapo.monitor.console import HEADLINES


def test_every_scalar_has_a_group_and_a_sentence() -> None:
    for name, meaning in SCALARS.items():
        group, _, rest = name.partition("/")
        assert group and rest and "/" not in rest, name
        assert meaning[0].isupper() or meaning.startswith("|"), name
        assert meaning.endswith("."), name


def test_names_that_depend_on_the_run_are_known_by_their_group() -> None:
    assert describe("seconds/rollout") == "Duration of the phase in this step, seconds."
    assert describe("seconds/step") == SCALARS["seconds/step"]
    assert describe("eval/pass@4/before") == "Measured on held-out problems."


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("reward/meen", "did you mean reward/mean?"),
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
