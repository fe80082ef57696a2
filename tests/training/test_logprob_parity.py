"""Check the reaction if engine and trainer differ. tests/reshard/test_engine_parity.py makes real ones differ."""

from __future__ import annotations

import pytest

from megatron_rapo.config import PrecisionConfig
from megatron_rapo.training.logprob_parity import GapBudget


@pytest.mark.parametrize("gap", [0.06, float("inf"), float("nan")])
def test_a_gap_above_the_limit_stops_the_run(gap: float) -> None:
    budget = GapBudget(PrecisionConfig(max_logprob_gap=0.05), pytest.fail)
    budget.check(0.05, step=3)
    with pytest.raises(RuntimeError) as raised:
        budget.check(gap, step=4)
    assert str(raised.value) == (
        f"precision.max_logprob_gap=0.05: engine and trainer differ by {gap:.4g} nats per token on average after step "
        "4, so the engine does not sample from this policy; if that is rounding (low precision; see "
        "reshard/parity_*), raise the limit or set precision.on_logprob_gap=warn."
    )


def test_a_warning_is_said_each_time_that_the_limit_is_passed_and_not_while_it_stays_so() -> None:
    said: list[str] = []
    budget = GapBudget(PrecisionConfig(max_logprob_gap=0.05, on_logprob_gap="warn"), said.append)
    for step, gap in enumerate([0.01, 0.2, 0.3, 0.04, float("nan"), 0.1]):
        budget.check(gap, step=step)
    assert said == [
        "WARNING: precision.max_logprob_gap=0.05: engine and trainer differ by 0.2 nats per token on average after "
        "step 1",
        "WARNING: precision.max_logprob_gap=0.05: engine and trainer differ by nan nats per token on average after "
        "step 4",
    ]
